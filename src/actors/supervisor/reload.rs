//! An edited configuration comes into force.

use iii_protocol::api::{ErrorBody, ErrorCode, ReloadReply};
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::workers::{LEAVE, Presence};
use super::{RootState, settings_of, shutting_down};
use crate::actors::config_watcher::Reading;
use crate::actors::messages::SupervisorMsg;
use crate::actors::worker::messages::WorkerMsg;
use crate::actors::worker::state::Order;
use crate::config::diff::{Change, diff};
use crate::config::schema::{Config, WorkerConfig};

impl RootState {
    /// The file was read: because it changed, or because someone asked.
    pub(super) async fn config_read(&mut self, myself: &ActorRef<SupervisorMsg>, reading: Reading) {
        let Reading { result, replies } = reading;
        let refusal = match result {
            Ok(_) | Err(_) if self.mode.is_shutting_down() => shutting_down(),
            Err(text) => {
                self.config_is_broken(&text);
                ErrorBody {
                    code: ErrorCode::BadConfig,
                    message: text,
                    hint: Some(
                        "the last good configuration stays in force until the file is mended".to_owned(),
                    ),
                }
            }
            Ok(config) => {
                let (changed, shown) = self.apply(myself, config).await;
                tokio::spawn(async move {
                    // One who waits for the reload sees the new state afterwards, not the old one.
                    for worker in shown {
                        let _failed = worker.await;
                    }
                    for reply in replies {
                        let _gone = reply.send(Ok(ReloadReply { changed: changed.clone() }));
                    }
                });
                return;
            }
        };
        for reply in replies {
            let _gone = reply.send(Err(refusal.clone()));
        }
    }

    fn config_is_broken(&mut self, text: &str) {
        if self.config_error.as_deref() != Some(text) {
            self.config_error = Some(text.to_owned());
            (self.args.announce_config)(Err(text));
        }
    }

    /// Gives the names that changed, and what ends when each edited worker shows it.
    async fn apply(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        config: Config,
    ) -> (Vec<String>, Vec<oneshot::Receiver<()>>) {
        let was_broken = self.config_error.take().is_some();
        let changes = diff(&self.config, &config);
        let names: Vec<String> = changes.iter().map(|change| change.name().to_owned()).collect();
        // Before the changes: what they start must see the new settings.
        self.settings.send_replace(settings_of(&config));
        let order: Vec<String> = config.workers.iter().map(|worker| worker.name.clone()).collect();
        self.config = config;
        let mut shown = Vec::new();
        for change in changes {
            match change {
                Change::Added(worker) => shown.extend(self.add(myself, worker).await),
                Change::Removed(name) => self.remove(myself, &name).await,
                Change::Restart(worker) => shown.extend(self.edit(myself, worker, true).await),
                Change::Update(worker) => shown.extend(self.edit(myself, worker, false).await),
            }
        }
        self.entries
            .sort_by_key(|entry| order.iter().position(|name| name == entry.name()).unwrap_or(usize::MAX));
        if was_broken || !names.is_empty() {
            (self.args.announce_config)(Ok(&names));
        }
        (names, shown)
    }

    async fn add(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        config: WorkerConfig,
    ) -> Option<oneshot::Receiver<()>> {
        let Some(index) = self.position(&config.name) else {
            self.add_entry(myself, config, Order::Start).await;
            return None;
        };
        // It was removed a moment ago and is still on its way down.
        let entry = &mut self.entries[index];
        entry.presence = Presence::Configured;
        entry.config = config.clone();
        let Some(actor) = entry.actor.clone() else {
            self.spawn_worker(myself, index, Order::Start).await;
            return None;
        };
        let (done, shown) = oneshot::channel();
        // An actor that fails now is followed by one that reads the new entry.
        let _failed = actor.cast(WorkerMsg::Reconfigure { config: Box::new(config), restart: true, done });
        let _failed = actor.cast(WorkerMsg::Start { reply: None });
        Some(shown)
    }

    async fn remove(&mut self, myself: &ActorRef<SupervisorMsg>, name: &str) {
        let Some(index) = self.position(name) else { return };
        self.entries[index].presence = Presence::Leaving;
        match &self.entries[index].actor {
            Some(actor) => {
                let _failed = actor.cast(WorkerMsg::Leave { grace: None });
            }
            None => self.spawn_worker(myself, index, LEAVE).await,
        }
    }

    async fn edit(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        config: WorkerConfig,
        restart: bool,
    ) -> Option<oneshot::Receiver<()>> {
        let index = self.position(&config.name)?;
        self.entries[index].config = config.clone();
        let Some(actor) = &self.entries[index].actor else {
            if restart {
                self.spawn_worker(myself, index, Order::Recorded).await;
            }
            return None;
        };
        let (done, shown) = oneshot::channel();
        let _failed = actor.cast(WorkerMsg::Reconfigure { config: Box::new(config), restart, done });
        Some(shown)
    }
}
