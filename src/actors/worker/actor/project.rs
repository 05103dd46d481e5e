//! What an actor does while the project of its worker is edited.

use iii_protocol::api::{Desired, ErrorBody};
use iii_protocol::shim::NOT_IN_FORCE;
use ractor::ActorRef;

use super::WorkerState;
use crate::actors::worker::messages::WorkerMsg;
use crate::actors::worker::plan::Recipe;
use crate::actors::worker::project_watch::ProjectWatch;
use crate::actors::worker::state::{Claim, Input, State};
use crate::actors::worker::tasks;
use crate::config::schema::Source;
use crate::image::types::Image;

impl WorkerState {
    /// Follows the project's files as long as somebody wants that, and the worker is to run.
    pub(super) fn follow_project(&mut self, myself: &ActorRef<WorkerMsg>) {
        let is_wanted = self.args.config.watch || self.args.kit.developers.is_any();
        let may_run = self.worker.claim == Claim::Held
            && self.worker.record.desired == Desired::Running
            && self.worker.state != State::Stopped;
        let Source::Local { path, exclude } = &self.args.config.source else {
            self.watch = None;
            return;
        };
        if !(is_wanted && may_run) {
            self.watch = None;
            self.surface.unreadable = None;
        } else if !self.watch.as_ref().is_some_and(|watch| watch.is_of(path, exclude)) {
            let actor = myself.clone();
            self.watch = Some(ProjectWatch::start(path.clone(), exclude.clone(), move |edited| {
                let _gone = actor.cast(WorkerMsg::ProjectSeen { edited });
            }));
        }
    }

    pub(super) fn recheck(&self, myself: &ActorRef<WorkerMsg>, edited: bool) {
        let (config, around, actor) = (self.args.config.clone(), self.args.around.clone(), myself.clone());
        // An edit that came while nobody followed the project may mend what it failed by. Of a machine that runs, it
        // finds out by itself.
        let is_unready = matches!(self.worker.state, State::Unready { .. });
        let notes = (!edited && is_unready).then(|| self.args.kit.store.folder().to_owned());
        tokio::spawn(async move {
            let edited = match notes {
                Some(notes) => tasks::is_edited(&config, notes).await,
                None => edited,
            };
            let result = Box::new(tasks::recheck(config, around).await);
            let _gone = actor.cast(WorkerMsg::Rechecked { edited, result });
        });
    }

    /// What runs stays as it is when the project cannot be read.
    pub(super) fn rechecked(
        &mut self,
        myself: &ActorRef<WorkerMsg>,
        edited: bool,
        result: Result<(Recipe, Option<Image>), ErrorBody>,
    ) {
        if self.watch.is_none() {
            return;
        }
        let differs = match result {
            Ok((recipe, image)) => {
                self.surface.unreadable = None;
                self.differs(recipe, image)
            }
            Err(error) => {
                let first = error.message.lines().next().unwrap_or_default();
                self.surface.unreadable = Some(format!("{NOT_IN_FORCE}: {first}"));
                return self.publish();
            }
        };
        self.step(myself, Input::ProjectSeen { edited, differs });
    }

    /// Whether another machine is to run than the one that does.
    fn differs(&mut self, recipe: Recipe, image: Option<Image>) -> bool {
        let generation = self.worker.record.generation;
        let link = self.links.iter().find(|link| link.generation == generation);
        let Some(runs) = link.and_then(|link| link.spec_hash.clone()) else { return false };
        match image {
            Some(image) => self.wanted_hash(Some(Box::new((recipe, image)))).is_some_and(|hash| hash != runs),
            // It has to be pulled, if it is another one.
            None => self.surface.base_image.as_ref().is_some_and(|base| *base != recipe.image),
        }
    }
}
