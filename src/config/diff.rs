//! What an edit of config.yaml asks of the workers.

use std::collections::HashMap;

use super::schema::{Config, Source, WorkerConfig};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A worker that was not there: start it.
    Added(WorkerConfig),
    /// A worker that is no longer there: stop it.
    Removed(String),
    /// What runs is different (source, environment, resources, network): stop it and start it anew.
    Restart(WorkerConfig),
    /// Only how it is looked after is different (restart policy, timeouts, order of its variables): no restart.
    Update(WorkerConfig),
}

impl Change {
    /// Which worker.
    pub fn name(&self) -> &str {
        match self {
            Change::Removed(name) => name,
            Change::Added(worker) | Change::Restart(worker) | Change::Update(worker) => &worker.name,
        }
    }
}

/// First what is removed, in the old order, then the rest, in the new order. A worker that only moved within the
/// file is not mentioned; neither are the keys at the top of the file.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let before: HashMap<&str, &WorkerConfig> = old.workers.iter().map(|w| (w.name.as_str(), w)).collect();
    let removed = old
        .workers
        .iter()
        .filter(|worker| new.workers.iter().all(|w| w.name != worker.name))
        .map(|worker| Change::Removed(worker.name.clone()));
    let others = new.workers.iter().filter_map(|worker| match before.get(worker.name.as_str()) {
        None => Some(Change::Added(worker.clone())),
        Some(same) if *same == worker => None,
        Some(before) if runs_the_same(before, worker) => Some(Change::Update(worker.clone())),
        Some(_) => Some(Change::Restart(worker.clone())),
    });
    removed.chain(others).collect()
}

fn runs_the_same(a: &WorkerConfig, b: &WorkerConfig) -> bool {
    let same_env = match (&a.env, &b.env) {
        (Ok(a), Ok(b)) => {
            let sorted = |env: &[(String, String)]| {
                let mut env = env.to_vec();
                env.sort();
                env
            };
            sorted(a) == sorted(b)
        }
        (a, b) => a == b,
    };
    same_env
        && a.source == b.source
        && a.resources == b.resources
        && same_hints(a, b)
        && a.network == b.network
}

/// What the file says itself decides only where something else would fill in the rest.
fn same_hints(a: &WorkerConfig, b: &WorkerConfig) -> bool {
    let is_local = matches!(b.source, Source::Local { .. });
    !is_local || a.own_resources == b.own_resources
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use iii_protocol::network::Network;
    use proptest::prelude::*;

    use super::*;
    use crate::config::engine::EngineUrl;
    use crate::config::load::parse;
    use crate::config::schema::{OwnResources, RestartConfig, default_resources};

    fn config(text: &str) -> Config {
        parse(text, Path::new("config.yaml"), &|_| None).unwrap()
    }

    #[test]
    fn each_kind_of_edit_asks_for_what_it_needs_and_no_more() {
        let base = "workers: [{name: a, image: x, config: {A: 1, B: 2}}]";
        for (text, want) in [
            (base, None),
            ("workers: [{name: a, image: y, config: {A: 1, B: 2}}]", Some("restart")),
            ("workers: [{name: a, image: x, config: {A: 1, B: 3}}]", Some("restart")),
            ("workers: [{name: a, image: x, config: {A: 1}}]", Some("restart")),
            ("workers: [{name: a, worker_path: /x, config: {A: 1, B: 2}}]", Some("restart")),
            ("workers: [{name: a, image: x, config: {A: 1, B: 2}, resources: {cpus: 1}}]", Some("restart")),
            (
                "workers: [{name: a, image: x, config: {A: 1, B: 2}, network: {egress: none}}]",
                Some("restart"),
            ),
            ("workers: [{name: a, image: x, config: {A: 1, B: 2}, ports: [80]}]", Some("restart")),
            (
                "workers: [{name: a, image: x, config: {A: 1, B: 2}, network: {egress: public}, ports: []}]",
                None,
            ),
            ("workers: [{name: a, image: x, config: {A: 1, B: 2}, restart: never}]", Some("update")),
            ("workers: [{name: a, image: x, config: {A: 1, B: 2}, stop_timeout: 1s}]", Some("update")),
            ("workers: [{name: a, image: x, config: {A: 1, B: 2}, boot_timeout: 1s}]", Some("update")),
            ("workers: [{name: a, image: x, config: {B: 2, A: 1}}]", Some("update")),
            ("workers: [{name: a, image: x, config: {A: \"1\", B: 2}}] # c", None),
            ("orphan_grace: 5s\nworkers: [{name: a, image: x, config: {A: 1, B: 2}}]", None),
            ("workers: []", Some("removed")),
        ] {
            let changes = diff(&config(base), &config(text));
            let kinds: Vec<&str> = changes
                .iter()
                .map(|change| match change {
                    Change::Added(_) => "added",
                    Change::Removed(_) => "removed",
                    Change::Restart(_) => "restart",
                    Change::Update(_) => "update",
                })
                .collect();
            assert_eq!(kinds, Vec::from_iter(want), "{text}");
        }
    }

    #[test]
    fn a_project_is_restarted_when_other_files_or_resources_are_its_own() {
        let base = "workers: [{name: a, worker_path: /x, exclude: ['*.log']}]";
        for (text, restarts) in [
            ("workers: [{name: a, worker_path: /x, exclude: [\"*.log\"]}]", false),
            // Who only follows it changes nothing of what runs.
            ("workers: [{name: a, worker_path: /x, exclude: ['*.log'], watch: true}]", false),
            ("workers: [{name: a, worker_path: /x}]", true),
            ("workers: [{name: a, worker_path: /x, exclude: ['*.tmp']}]", true),
            // As the default is, but now the manifest has no say.
            ("workers: [{name: a, worker_path: /x, exclude: ['*.log'], resources: {memory: 2048}}]", true),
        ] {
            let changes = diff(&config(base), &config(text));
            assert_eq!(matches!(changes[..], [Change::Restart(_)]), restarts, "{text}");
        }
        let image = config("workers: [{name: a, image: x}]");
        let changes = diff(&image, &config("workers: [{name: a, image: x, resources: {memory: 2048}}]"));
        assert!(matches!(changes[..], [Change::Update(_)]), "an image has no say in it: {changes:?}");
    }

    #[test]
    fn removals_come_first_and_the_rest_in_the_order_of_the_file() {
        let old = config("workers: [{name: a}, {name: b}, {name: c}]");
        let new = config("workers: [{name: d}, {name: c}, {name: e}]");
        let names: Vec<String> = diff(&old, &new).iter().map(|c| c.name().to_owned()).collect();
        assert_eq!(names, ["a", "b", "d", "e"]);
    }

    fn workers() -> impl Strategy<Value = Vec<WorkerConfig>> {
        let worker = (0..3u8, 0..3u8, 1..3u8).prop_map(|(image, var, stop)| {
            let source = if image == 0 { Source::None } else { Source::Oci { image: format!("i{image}") } };
            let mut env = vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())];
            env.rotate_left(usize::from(var % 2));
            env.truncate(if var == 2 { 1 } else { 2 });
            WorkerConfig {
                name: String::new(),
                source,
                watch: false,
                env: Ok(env),
                engine: EngineUrl::default(),
                resources: default_resources(),
                own_resources: OwnResources::default(),
                network: Network::default(),
                restart: RestartConfig::default(),
                stop_timeout: Duration::from_secs(stop.into()),
                boot_timeout: None,
            }
        });
        proptest::collection::btree_map("[a-e]", worker, 0..5)
            .prop_map(|map| map.into_iter().map(|(name, worker)| WorkerConfig { name, ..worker }).collect())
    }

    proptest! {
        #[test]
        fn the_changes_turn_the_old_workers_into_the_new(old in workers(), new in workers()) {
            let with = |workers: &[WorkerConfig]| Config { workers: workers.to_vec(), ..config("") };
            let mut now = old.clone();
            for change in diff(&with(&old), &with(&new)) {
                now.retain(|w| w.name != change.name());
                match change {
                    Change::Removed(_) => {}
                    Change::Added(w) | Change::Restart(w) | Change::Update(w) => now.push(w),
                }
            }
            let mut want = new.clone();
            now.sort_by(|a, b| a.name.cmp(&b.name));
            want.sort_by(|a, b| a.name.cmp(&b.name));
            prop_assert_eq!(now, want);
            prop_assert_eq!(diff(&with(&new), &with(&new)), vec![]);
        }
    }
}
