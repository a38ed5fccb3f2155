//! `[notify]`

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::database::SecretFile;
use crate::web::Address;

/// A pause of less is not worth a message to anybody, and one of more is hardly ever left alone so long.
const AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// `[notify]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct NotifySettings {
    /// Where to; none: nobody is told. May have a secret in it.
    pub url: Option<SecretString>,
    /// A file with the token that is sent along. Relative: in the folder of systemd's credentials, where there is one.
    pub token_file: Option<PathBuf>,
    /// How long a job must have been paused to be told of, and the least time from one message on rows that are set aside
    /// to the next on the same job.
    #[serde(with = "humantime_serde")]
    pub after: Duration,
}

impl Default for NotifySettings {
    fn default() -> Self {
        Self { url: None, token_file: None, after: Duration::from_secs(15 * 60) }
    }
}

impl NotifySettings {
    /// Where to, if anybody is to be told. Settings that were validated have no other URL than a good one.
    #[must_use]
    pub fn receiver(&self) -> Option<Address> {
        Address::parse(self.url()?).ok()
    }

    /// The file with the token, if there is one.
    #[must_use]
    pub fn token_file(&self) -> Option<SecretFile> {
        let path = self.token_file.as_ref().filter(|path| !path.as_os_str().is_empty());
        path.map(|path| SecretFile::new("notify.token_file", path))
    }

    fn url(&self) -> Option<&str> {
        self.url.as_ref().map(|url| url.expose_secret().trim()).filter(|url| !url.is_empty())
    }

    /// What makes no sense; each begins with its key, and none repeats the URL.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !AFTER.contains(&self.after) {
            problems.push("notify.after must be from 1s to 7d".to_owned());
        }
        match self.url().map(Address::parse) {
            Some(Err(problem)) => {
                problems.push(format!("notify.{problem}: write https://HOST/PATH"));
            }
            Some(Ok(address)) if address.has_user() && self.token_file().is_some() => problems.push(
                "notify.token_file cannot be used while notify.url has a user in it: take one of the two away".to_owned(),
            ),
            None if self.token_file().is_some() => problems
                .push("notify.token_file is of no use without notify.url: set it, or take the file away".to_owned()),
            _ => {}
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::tests::load;

    #[test]
    fn nobody_is_told_without_a_url() {
        assert!(load("", &[]).unwrap().notify.receiver().is_none());
        assert!(load("", &[("BACKFILLD__NOTIFY__URL", "")]).unwrap().notify.receiver().is_none());
        let settings = load("[notify]\nurl = 'https://hooks.example.com/hunter2'\n", &[]).unwrap();
        assert_eq!(settings.notify.receiver().unwrap().to_string(), "https://hooks.example.com");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn what_makes_no_sense_is_told_with_its_key_and_without_the_url() {
        for (text, said) in [
            ("url = 'hooks.example.com/hunter2'", "notify.url must begin with http:// or https://"),
            ("url = 'ftp://hooks.example.com/hunter2'", "notify.url must begin with http:// or https://"),
            ("url = 'https:///hunter2'", "notify.url "),
            ("url = 'https://h/hunter2 '\nafter = '8d'", "notify.after must be from 1s to 7d"),
            ("after = '0s'", "notify.after must be from 1s to 7d"),
            ("token_file = '/t'", "notify.token_file is of no use without notify.url"),
            ("url = 'https://u:hunter2@h/'\ntoken_file = '/t'", "notify.token_file cannot be used while"),
        ] {
            let told = load(&format!("[notify]\n{text}\n"), &[]).unwrap_err();
            assert!(told.starts_with(&format!("backfilld.toml: {said}")), "{text}: {told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
        let told = load("", &[("BACKFILLD__NOTIFY__URL", "hunter2")]).unwrap_err();
        assert!(told.starts_with("BACKFILLD__NOTIFY__URL: notify.url must begin"), "{told}");
    }
}
