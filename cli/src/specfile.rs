//! A service described in a file: a spec in JSON with the field names of
//! `proto/lca/v1`, as `service get -o json` prints it, or the `service-conf.json` of the
//! original.
//!
//! The original's numbers are read as: `NetworkSoftReq.RTT` and `NetworkHardReq.RTT`
//! milliseconds, `CpuReq` thousandths of a core, `MemoryReq` MiB; 0 is the default. Its
//! `DockerConf` describes an image to build and is not used.
//!
//! A key that is not known is refused with its path: a limit that is misspelt must not
//! be a limit that does not hold.

use std::{fs, io::Read as _, path::Path};

use lca::{Error, Kind, Result};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::view::{Image, Liveness, Requirements, Resources, ServiceSpec};

/// Largest file taken: a spec is at most some 130 KiB.
const MAX_FILE: u64 = 1 << 20;
/// Keys of the original's file, by which it is known.
const ORIGINAL: [&str; 5] =
    ["NetworkSoftReq", "NetworkHardReq", "CpuReq", "MemoryReq", "DockerConf"];

/// What a file says.
#[derive(Debug)]
pub(crate) struct Described {
    /// The spec, as far as the file has one.
    pub(crate) spec: ServiceSpec,
    /// What of the file is not used, as a sentence.
    pub(crate) unused: Option<&'static str>,
}

/// Reads a file. Blocks.
///
/// # Errors
/// [`Kind::NotFound`] if there is none, [`Kind::FailedPrecondition`] if it cannot be
/// read, [`Kind::InvalidArgument`] naming the file and what is wrong where.
pub(crate) fn read(path: &Path) -> Result<Described> {
    let name = path.display();
    let mut bytes = Vec::new();
    let opened = fs::File::open(path);
    opened.and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::FailedPrecondition,
        };
        Error::new(kind, format!("cannot read {name}: {error}"))
    })?;
    let described = match bytes.len() as u64 > MAX_FILE {
        true => Err("it is larger than 1 MiB".to_owned()),
        false => parse(&bytes),
    };
    described.map_err(|reason| Error::new(Kind::InvalidArgument, format!("{name}: {reason}")))
}

fn parse(bytes: &[u8]) -> Result<Described, String> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("is not JSON: {error}"))?;
    if !value.is_object() {
        return Err("must be an object".into());
    }
    let text = |error: serde_json::Error| error.to_string();
    if ORIGINAL.iter().any(|key| value.get(key).is_some()) {
        return original(serde_json::from_slice(bytes).map_err(text)?);
    }
    let every = ServiceSpec {
        image: Some(Image::default()),
        liveness: Some(Liveness::default()),
        socket_activation: true, // left out where it is not
        ..ServiceSpec::default()
    };
    let spec = serde_json::to_value(every).map_err(text)?;
    let spec = match value.get("spec") {
        // As `service get` and `service add` print it.
        Some(_) => {
            let all = serde_json::json!({ "spec": spec, "stale": false, "changed": false });
            only_known(&value, &all, "")?;
            serde_json::from_slice::<Printed>(bytes).map_err(text)?.spec
        }
        None => {
            only_known(&value, &spec, "")?;
            serde_json::from_slice(bytes).map_err(text)?
        }
    };
    Ok(Described { spec, unused: None })
}

#[derive(Deserialize)]
struct Printed {
    spec: ServiceSpec,
}

/// Refuses a key of `value` that `known`, a spec with all its fields, does not have.
fn only_known(value: &Value, known: &Value, path: &str) -> Result<(), String> {
    let (Value::Object(value), Value::Object(known)) = (value, known) else { return Ok(()) };
    for (key, inner) in value {
        let shown: String = key.chars().take(64).flat_map(char::escape_debug).collect();
        let shown = format!("{path}{shown}");
        match known.get(key) {
            // Names of variables are anybody's choice.
            Some(_) if key == "environment" => {}
            Some(known) => only_known(inner, known, &format!("{shown}."))?,
            None => {
                let all: Vec<_> = known.keys().map(String::as_str).collect();
                return Err(format!("{shown}: is not known here; known are {}", all.join(", ")));
            }
        }
    }
    Ok(())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct Original {
    network_soft_req: Rtt,
    network_hard_req: Rtt,
    cpu_req: u32,
    memory_req: u32,
    docker_conf: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rtt {
    #[serde(rename = "RTT")]
    rtt: u32,
}

fn original(file: Original) -> Result<Described, String> {
    let spec = ServiceSpec {
        requirements: Requirements {
            soft_rtt_ms: file.network_soft_req.rtt,
            hard_rtt_ms: file.network_hard_req.rtt,
        },
        resources: Resources {
            cpu_millis: file.cpu_req,
            memory_bytes: u64::from(file.memory_req) << 20,
            ..Default::default()
        },
        ..Default::default()
    };
    let unused = "DockerConf is not used: --exec names the program to run";
    Ok(Described { spec, unused: file.docker_conf.map(|_| unused) })
}

#[cfg(test)]
mod tests {
    use lca::{Digest, Spec, api::proto};

    use super::*;

    fn refused(text: &str) -> String {
        parse(text.as_bytes()).expect_err(text)
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let spec = proto::ServiceSpec {
            name: "hello".into(),
            artifact: Digest::of(b"x").to_string(),
            arguments: vec!["--port".into(), "${SERVICE_PORT}".into()],
            environment: [("A".to_owned(), "B".to_owned())].into(),
            protocol: proto::Protocol::Http1.into(),
            readiness: Some(proto::Readiness {
                http_path: "/hello".into(),
                start_timeout_ms: 20_000,
            }),
            liveness: Some(proto::Liveness {
                http_path: "/live".into(),
                interval_ms: 200,
                timeout_ms: 300,
                failures: 4,
            }),
            socket_activation: true,
            requirements: Some(proto::Requirements { soft_rtt_ms: 10, hard_rtt_ms: 20 }),
            resources: Some(proto::Resources {
                cpu_millis: 250,
                memory_bytes: 1 << 20,
                processes: 8,
                open_files: 9,
                log_bytes: 10,
                disk_bytes: 11,
            }),
            idle_timeout_ms: 1234,
            concurrency_limit: 7,
            min_instances: 1,
            max_instances: 2,
            target_concurrency: 3,
            placement: proto::Placement::Pack.into(),
            limits: Some(proto::Limits {
                max_body_bytes: 1 << 20,
                answer_timeout_ms: 1,
                quiet_timeout_ms: 2,
                request_timeout_ms: 3,
            }),
            revision: 3,
            ..Default::default()
        };
        let spec = proto::ServiceSpec::from(&Spec::try_from(spec).unwrap());
        let printed = serde_json::to_value(ServiceSpec::from(spec.clone())).unwrap();
        let got = serde_json::json!({ "spec": printed, "stale": false });
        for printed in [printed, got] {
            let read = parse(printed.to_string().as_bytes()).unwrap().spec;
            assert_eq!(proto::ServiceSpec::try_from(read).unwrap(), spec);
        }
    }

    #[test]
    fn the_originals_file_is_read_in_milliseconds_and_mebibytes() {
        let text = r#"{ "NetworkSoftReq": { "RTT": 10 }, "NetworkHardReq": { "RTT": 50 },
            "CpuReq": 50, "MemoryReq": 496, "DockerConf": { "From": "ubuntu", "Copy": [["a", "b"]] } }"#;
        let Described { spec, unused } = parse(text.as_bytes()).unwrap();
        assert_eq!((spec.requirements.soft_rtt_ms, spec.requirements.hard_rtt_ms), (10, 50));
        assert_eq!((spec.resources.cpu_millis, spec.resources.memory_bytes), (50, 496 << 20));
        assert!(unused.unwrap().starts_with("DockerConf is not used"));
        let least = parse(br#"{ "CpuReq": 0 }"#).unwrap();
        assert_eq!((least.spec.resources.cpu_millis, least.unused), (0, None));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, reason) in [
            ("", "is not JSON"),
            ("[]", "must be an object"),
            (r#"{ "name": "x", }"#, "is not JSON: trailing comma at line 1"),
            (r#"{ "nmae": "x" }"#, "nmae: is not known here; known are"),
            (r#"{ "requirements": { "soft_rtt": 1 } }"#, "requirements.soft_rtt: is not known"),
            (r#"{ "spec": { "resources": { "cpu": 1 } } }"#, "spec.resources.cpu: is not known"),
            (r#"{ "spec": {}, "more": 1 }"#, "more: is not known"),
            (r#"{ "idle_timeout_ms": "1s" }"#, "expected u64 at line 1 column"),
            (r#"{ "idle_timeout_ms": -1 }"#, "integer `-1`, expected u64 at line 1"),
            (r#"{ "requirements": { "soft_rtt_ms": 1, "soft_rtt_ms": 2 } }"#, "duplicate field"),
            (r#"{ "CpuReq": 1, "Cpu": 2 }"#, "unknown field `Cpu`"),
            (r#"{ "NetworkSoftReq": { "Rtt": 1 } }"#, "unknown field `Rtt`"),
            (r#"{ "NetworkSoftReq": { "RTT": -1 } }"#, "expected u32 at line 1"),
        ] {
            let said = refused(text);
            assert!(said.contains(reason), "{text}: {said}");
        }
        for named in ["h2c", "PROTOCOL_H2C"] {
            let text = format!(r#"{{ "protocol": "{named}" }}"#);
            let spec = proto::ServiceSpec::try_from(parse(text.as_bytes()).unwrap().spec);
            assert_eq!(spec.unwrap().protocol(), proto::Protocol::H2c);
        }
        let odd = parse(br#"{ "protocol": "PROTOCOL_PIGEON" }"#).unwrap().spec;
        assert!(proto::ServiceSpec::try_from(odd).is_err());
    }

    #[test]
    fn a_file_that_is_no_file_or_too_large_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        assert_eq!(read(&path).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(read(dir.path()).unwrap_err().kind(), Kind::FailedPrecondition);
        fs::write(&path, vec![b' '; MAX_FILE as usize + 1]).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.public().ends_with("spec.json: it is larger than 1 MiB"), "{error}");
    }
}
