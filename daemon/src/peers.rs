//! The peers this daemon was connected to, kept for the next start: the way back into
//! the network when every bootstrap is gone.
//!
//! They are no configuration: nobody is told that they are bootstraps, and one that does
//! not answer is no fault. Who answers must prove to be the peer, so that a file that is
//! out of date, or was changed, costs a dial in vain.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use lca::{
    config::{Bootstrap, Host},
    shutdown::Spawner,
};
use lca_node::{MAX_CONTACTS, Node};

/// Least time between two writes. Peers come in crowds, and a moment after a peer is
/// there its role is known.
const PAUSE: Duration = Duration::from_secs(2);
/// More than sixteen addresses take.
const MAX_BYTES: u64 = 16 * 1024;

/// Reads what the last start left in the data folder. What is damaged is told, and was
/// never there.
pub(crate) fn read(data_dir: &Path) -> Vec<Bootstrap> {
    let file = file(data_dir);
    let kept = File::open(&file).and_then(|file| {
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text)?;
        parse(&text)
    });
    match kept {
        Ok(peers) => peers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the peers of the last start are ignored");
            Vec::new()
        }
    }
}

/// Keeps the node's peers on disk, which holds `kept`, until the daemon is asked to stop,
/// and then once more.
pub(crate) fn keep(
    data_dir: &Path,
    mut kept: Vec<Bootstrap>,
    node: Node,
    spawner: Spawner,
) -> impl Future<Output = ()> + Send + use<> {
    let file = file(data_dir);
    async move {
        let (mut status, mut going_on) = (node.status(), true);
        while going_on {
            let changed = async {
                // An error says that the node is stopping, and so is the daemon.
                let stopping = status.changed().await.is_err();
                tokio::time::sleep(PAUSE).await;
                !stopping
            };
            going_on = tokio::select! {
                () = spawner.stopping() => false,
                going_on = changed => going_on,
            };
            let peers = node.contacts();
            if peers == kept {
                continue;
            }
            match write(&file, &peers) {
                Ok(()) => kept = peers,
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "cannot keep the peers");
                }
            }
        }
        spawner.stopping().await;
    }
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("peers.json")
}

fn parse(text: &str) -> io::Result<Vec<Bootstrap>> {
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let lines: Vec<String> = serde_json::from_str(text)?;
    if lines.len() > MAX_CONTACTS {
        return Err(damaged("there are too many"));
    }
    let mut peers: Vec<Bootstrap> = Vec::new();
    for line in lines {
        let at: Bootstrap =
            line.parse().map_err(|error: lca::Error| damaged(&error.to_string()))?;
        if matches!(at.host, Host::Dns(_)) || peers.iter().any(|other| other.peer == at.peer) {
            return Err(damaged("there is a name, or a peer twice"));
        }
        peers.push(at);
    }
    Ok(peers)
}

fn write(file: &Path, peers: &[Bootstrap]) -> io::Result<()> {
    let lines: Vec<_> = peers.iter().map(ToString::to_string).collect();
    let aside = file.with_extension("new");
    fs::write(&aside, format!("{:#}\n", serde_json::json!(lines)))?;
    fs::rename(&aside, file)
}

#[cfg(test)]
mod tests {
    use lca::PeerId;

    use super::*;

    fn peers(count: u8) -> Vec<Bootstrap> {
        let at = |number: u8| Bootstrap {
            host: Host::Ip([10, 0, 0, 1].into()),
            port: 4000 + u16::from(number),
            peer: PeerId::from_public_key([number; 32]),
        };
        (0..count).map(at).collect()
    }

    #[test]
    fn what_was_kept_is_read_again_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).is_empty());
        let all = peers(u8::try_from(MAX_CONTACTS).unwrap());
        write(&file(dir.path()), &all).unwrap();
        assert_eq!(read(dir.path()), all);
        write(&file(dir.path()), &all[..1]).unwrap();
        assert_eq!(read(dir.path()), all[..1]);
    }

    #[test]
    fn a_damaged_file_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let one = peers(1)[0].to_string();
        let name = one.replace("/ip4/10.0.0.1", "/dns/example.org");
        let many: Vec<_> = peers(17).iter().map(ToString::to_string).collect();
        let twice = serde_json::json!([one, one.replace("4000", "4001")]).to_string();
        let cut = format!("[\"{one}");
        let long = format!("[{}\"{one}\"]", " ".repeat(16 * 1024));
        let named = format!("[\"{name}\"]");
        let many = serde_json::json!(many).to_string();
        for text in ["", "{}", "[1]", r#"["/ip4/1"]"#, &cut, &twice, &many, &named, &long] {
            fs::write(file(dir.path()), text).unwrap();
            assert!(read(dir.path()).is_empty(), "{text}");
        }
        fs::write(file(dir.path()), [0xff, 0xfe]).unwrap();
        assert!(read(dir.path()).is_empty());
    }
}
