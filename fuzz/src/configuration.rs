//! The configuration file, and the bootstraps in the environment.

use std::time::Duration;

use lca::config::{Config, Invalid, bootstraps};

use crate::Outcome;

/// The longest limit that means anything.
const HOUR: Duration = Duration::from_secs(3600);

/// Reads the input as a configuration file, and as the text of an environment variable.
///
/// # Panics
/// If what is taken is not JSON, breaks its bounds or is not read again as it is printed,
/// or if a problem is told that has no place in the file.
pub fn configuration(input: &[u8]) -> Outcome {
    let Ok(text) = str::from_utf8(input) else { return Outcome::Refused };
    if let Ok(read) = bootstraps(&[], &[], Some(text)) {
        let printed: Vec<_> = read.iter().map(ToString::to_string).collect();
        let again = bootstraps(&[], &[], Some(&printed.join(" "))).expect("what was printed");
        assert_eq!(again, read, "bootstraps change when printed");
    }
    match Config::parse("conf.json", text) {
        Ok(config) => {
            check_config(&config, text);
            Outcome::Taken
        }
        Err(invalid) => {
            check_problems(&invalid, text);
            Outcome::Refused
        }
    }
}

fn check_config(config: &Config, text: &str) {
    serde_json::from_str::<serde_json::Value>(text).expect("what is taken is JSON");
    let (soft, hard) = (config.requirements.soft, config.requirements.hard);
    for limit in [soft, hard].into_iter().flatten() {
        assert!(!limit.is_zero() && limit <= HOUR, "a limit of {limit:?}");
    }
    assert!(soft.zip(hard).is_none_or(|(soft, hard)| soft <= hard), "{soft:?} above {hard:?}");
    let again = Config::parse("printed.json", &config.to_json()).expect("what was printed");
    assert_eq!(&again, config, "the configuration changes when printed");
}

fn check_problems(invalid: &Invalid, text: &str) {
    assert!(!invalid.problems().is_empty(), "refused without a reason");
    for problem in invalid.problems() {
        let line = text.split('\n').nth(problem.line - 1);
        let line = line.unwrap_or_else(|| panic!("line {} of {text:?}", problem.line));
        let end = line.chars().count() + 1;
        assert!((1..=end).contains(&problem.column), "column {} of {line:?}", problem.column);
        assert!(!problem.reason.is_empty());
        // It is printed to a terminal.
        let shown = [&problem.key, &problem.reason];
        assert!(!shown.iter().any(|text| text.contains(char::is_control)), "{problem:?}");
    }
}
