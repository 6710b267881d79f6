//! A command line that means nothing, told as JSON where JSON was asked for: what reads
//! our output must not have to tell two kinds of errors apart.

use std::ffi::OsString;

use clap::error::ErrorKind;
use lca::Kind;

use crate::errors::Failure;

/// Whether these words ask for JSON, as far as a line that cannot be parsed says so.
pub(crate) fn wants_json(arguments: &[OsString]) -> bool {
    let words = arguments.iter().take_while(|word| *word != "--");
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let one = |word: &str| matches!(word, "-ojson" | "-o=json" | "--output=json");
    let two = |pair: &[std::borrow::Cow<'_, str>]| {
        matches!(&*pair[0], "-o" | "--output") && pair[1] == "json"
    };
    words.iter().any(|word| one(word)) || words.windows(2).any(two)
}

/// What clap says: its first line as the sentence, the others as details.
pub(crate) fn failure(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("the command line is wrong");
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // The text is the whole help.
        return Failure::new(Kind::InvalidArgument, "a command is missing").hint("lcactl --help");
    }
    let sentence = first.trim_start_matches("error: ");
    Failure::new(Kind::InvalidArgument, sentence).details(lines.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::Cli;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn json_is_recognised_in_a_line_that_is_wrong() {
        for line in
            ["lcactl -o json x", "lcactl x -ojson", "lcactl --output=json", "l --output json"]
        {
            assert!(wants_json(&words(line)), "{line}");
        }
        for line in ["lcactl x", "lcactl -o table", "lcactl x -- -o json", "lcactl -o"] {
            assert!(!wants_json(&words(line)), "{line}");
        }
    }

    #[test]
    fn what_clap_says_becomes_one_document() {
        for (line, said) in [
            ("lcactl release XYZ -o json", "invalid value 'XYZ'"),
            ("lcactl nonsense -o json", "unrecognized subcommand 'nonsense'"),
            ("lcactl -o json", "'lcactl' requires a subcommand"),
            ("lcactl", "a command is missing"),
        ] {
            let error = Cli::try_parse_from(words(line)).unwrap_err();
            let failure = failure(&error);
            let json: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
            let message = json["error"]["message"].as_str().unwrap();
            assert!(message.starts_with(said), "{message}");
            assert_eq!(json["error"]["exit_code"], 2);
            assert_eq!(json["error"]["kind"], "invalid-argument");
        }
    }
}
