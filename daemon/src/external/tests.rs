//! What two looks make of the service, without a network.

use std::net::SocketAddr;

use lca::{
    InstanceId, PeerId, Spec,
    api::proto::{InstanceState, ServiceSpec},
    endpoint::Endpoint,
};

use super::*;

fn known(change: impl FnOnce(&mut ServiceSpec)) -> Arc<Cached> {
    let mut spec = ServiceSpec { name: "printer".into(), ..Default::default() };
    change(&mut spec);
    let spec = Spec::try_from(spec).unwrap();
    Arc::new(Cached::new(spec, false))
}

fn silent() -> Result<(), String> {
    Err("it does not answer".into())
}

fn own() -> Endpoint {
    Endpoint {
        peer: PeerId::from_public_key([1; 32]),
        roles: Vec::new(),
        mesh: vec!["127.0.0.1:1".parse().unwrap()],
        boot: 1,
        sequence: 1,
        ttl: Duration::from_secs(600),
        version: String::new(),
    }
}

fn id(held: &Held) -> InstanceId {
    held.describe(&"printer".parse().unwrap(), &own()).id.parse().unwrap()
}

#[test]
fn one_look_in_vain_changes_nothing_two_withdraw_and_an_answer_brings_it_back() {
    let ingress = Ingress::new(lca_ingress::Config::default(), Default::default());
    let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let spec = known(|_| {});
    let mut held = Held::starting(spec.clone());
    let first = id(&held);
    let saw = |held: &mut Held, seen| {
        held.saw(&spec, seen, |local| ingress.register(local), address);
        (held.state(), held.serving().is_some(), held.reason().to_owned())
    };
    let ready = (InstanceState::Ready, true, String::new());
    let away = |state| (state, false, "it does not answer".to_owned());
    assert_eq!(saw(&mut held, silent()), away(InstanceState::Starting));
    assert_eq!(saw(&mut held, Ok(())), ready);
    assert_eq!(saw(&mut held, silent()), ready);
    assert_eq!(saw(&mut held, Ok(())), ready);
    assert_eq!(saw(&mut held, silent()), ready);
    assert_eq!(saw(&mut held, silent()), away(InstanceState::Draining));
    assert_eq!(saw(&mut held, Ok(())), ready);
    assert_eq!(id(&held), first, "it is the same one all the time");
    assert!(held.leave("over").is_some());
    assert_eq!((held.state(), held.serving()), (InstanceState::Draining, None));
}

#[test]
fn only_what_changes_the_service_its_looks_or_its_limit_begins_anew() {
    let spec = known(|_| {});
    let held = Held::starting(spec.clone());
    let requirements = lca::api::proto::Requirements { soft_rtt_ms: 5, hard_rtt_ms: 9 };
    assert!(held.represents(&known(|spec| spec.requirements = Some(requirements))));
    assert!(held.represents(&known(|spec| spec.revision = 7)));
    assert!(!held.represents(&known(|spec| spec.concurrency_limit = 7)));
    assert!(!held.represents(&known(|spec| drop(spec.environment.insert("A".into(), "1".into())))));
    let readiness =
        lca::api::proto::Readiness { http_path: "/healthz".into(), ..Default::default() };
    assert!(!held.represents(&known(|spec| spec.readiness = Some(readiness))));
    assert!(!Held::pending("nothing is known").represents(&spec));
}
