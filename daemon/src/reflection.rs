//! What the local API offers, told to programs that have no generated code: `grpcurl`, and
//! scripts in dynamic languages.

use lca::{Error, Kind, Result, api};
use tonic::service::Routes;
use tonic_reflection::server::Builder;

/// `routes` and `grpc.reflection`, both in the version of today and in the one that Python's
/// `grpcio-reflection` asks for.
pub(crate) fn added_to(routes: Routes) -> Result<Routes> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(api::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error| Error::new(Kind::Internal, "the API cannot be described").because(error);
    let v1 = builder().build_v1().map_err(failed)?;
    Ok(routes.add_service(v1).add_service(builder().build_v1alpha().map_err(failed)?))
}
