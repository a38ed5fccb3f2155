//! Reading configuration and job files, at the start and again on SIGHUP.

use secrecy::ExposeSecret as _;

use super::{SPARE_CONNECTIONS, Supervisor};
use crate::daemon::jobs_directory;
use crate::settings::Settings;

impl Supervisor {
    /// Reads configuration and job files again. What is wrong is reported, and the old settings stay.
    pub(super) async fn reload(&mut self) {
        let read = Settings::load(&self.options.overrides, &self.options.environment).and_then(|mut new| {
            // Statements that were prepared, and those that were not, are all over the daemon.
            let pooler = std::mem::replace(&mut new.database.pooler, self.options.settings.database.pooler);
            let target = new.target()?;
            Ok((new, target, pooler))
        });
        let (mut new, target, pooler) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded, the old settings stay");
                return;
            }
        };
        let old = &self.options.settings;
        (self.options.set_log_level)(new.log.level);
        let is_same_place = self.database.target().log_in_as(&target);
        let fixed = [
            ("state.schema", new.state.schema == old.state.schema),
            ("http.listen", new.http.listen == old.http.listen),
            ("http.token_file", new.http.token_file == old.http.token_file),
            ("http.allowed_hosts", new.http.allowed_hosts == old.http.allowed_hosts),
            ("log.format", new.log.format == old.log.format),
            ("daemon.name", new.daemon.name == old.daemon.name),
            ("database.pool_size", new.database.pool_size == old.database.pool_size),
            ("database.pooler", pooler == old.database.pooler),
            ("database.url", is_same_place),
        ];
        for (key, _) in fixed.into_iter().filter(|(_, same)| !same) {
            tracing::warn!(
                key,
                "changed in the configuration; takes effect when the daemon is started again"
            );
        }
        // What does not take effect does not do so by half either, and is told of again the next time.
        new.state.clone_from(&old.state);
        new.http.clone_from(&old.http);
        new.log.format = old.log.format;
        new.daemon.name.clone_from(&old.daemon.name);
        if !is_same_place {
            new.database = old.database.clone();
        }
        new.database.pool_size = old.database.pool_size;
        let most_jobs = new.database.pool_size.saturating_sub(SPARE_CONNECTIONS);
        new.daemon.max_running_jobs = new.daemon.max_running_jobs.min(most_jobs);
        // Whatever connects from now on reads passwords and certificates anew; batches in flight end first.
        self.database.discard_idle();
        let same_login = same_login(&new, old);
        if !same_login {
            self.database.target().hang_up();
        }
        // Replicas' certificates are read anew like the primary's.
        let has_replicas = !new.throttle.replication_lag.replicas.is_empty();
        if new.throttle != old.throttle || !same_login || has_replicas {
            self.throttle.reconfigure(new.throttle.clone(), new.database.access());
        }
        self.notifier.reconfigure(new.notify.clone());
        self.keeper.set_lease(new.daemon.lease);
        self.options.settings = new;
        tracing::info!("configuration reloaded");
        self.tell("configuration reloaded", "SIGHUP").await;
        self.read_job_files().await;
    }

    pub(super) async fn read_job_files(&self) {
        let Some(directory) = &self.options.settings.jobs.directory else { return };
        match self.database.get().await {
            Ok(mut client) => {
                jobs_directory::submit_all(&mut client, &self.state, directory, &self.actor).await;
            }
            Err(error) => tracing::error!(%error, "job files not read"),
        }
    }
}

fn same_login(one: &Settings, other: &Settings) -> bool {
    let url = |settings: &Settings| settings.database.url.as_ref().map(|url| url.expose_secret().to_owned());
    url(one) == url(other) && one.database.access() == other.database.access()
}
