//! Text of config.yaml to [`Config`]: every rule of the file, every error at its place.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iii_protocol::api::{ErrorBody, ErrorCode};

use super::engine::{ENGINE_VARIABLES, EngineUrl};
use super::env;
pub use super::error::ConfigError;
use super::error::{Problem, line_of};
use super::exclude::exclude;
use super::fields::{self, Fields, Missing, Values, Vars};
use super::network::network;
use super::ports::Taken;
use super::registries::{insecure, insecure_of_environment, registries};
use super::resources::resources;
use super::schema::{
    Config, DEFAULT_ORPHAN_GRACE, DEFAULT_STOP_TIMEOUT, OwnResources, RestartConfig, RestartPolicy, Source,
    WorkerConfig, default_resources,
};
use super::suggest::suggest;
use super::tree::{self, Entry, Node, Value};
use super::units::duration;
use super::watch::watch;

/// Longest config.yaml that is read, bytes.
pub(super) const MAX_FILE_BYTES: usize = 1024 * 1024;
/// Longest worker name.
pub const MAX_NAME_CHARS: usize = 63;
/// Worker names that begin like this would collide with files of the daemon's own.
const RESERVED_PREFIX: &str = "iii.";
/// Longest image reference.
const MAX_IMAGE_CHARS: usize = 512;
// `rootfs` is found in existing files; it chose between layouts that are one now.
const TOP_KEYS: &[&str] =
    &["workers", "modules", "insecure_registries", "registries", "orphan_grace", "rootfs"];
const WORKER_KEYS: &[&str] = &[
    "name",
    "image",
    "worker_path",
    "exclude",
    "watch",
    "config",
    "resources",
    "network",
    "ports",
    "restart",
    "stop_timeout",
    "boot_timeout",
];
const RESTART_KEYS: &[&str] = &["policy", "max_restarts", "delay", "max_delay", "reset_after"];
const POLICIES: &[(&str, RestartPolicy)] = &[
    ("always", RestartPolicy::Always),
    ("unless-stopped", RestartPolicy::UnlessStopped),
    ("on-failure", RestartPolicy::OnFailure),
    ("never", RestartPolicy::Never),
];

/// Reads and validates a file, with the variables of this process.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = tree::read(path, MAX_FILE_BYTES)?;
    parse(&text, path, &|name| std::env::var(name).ok())
}

/// Validates `text`. `path` is for messages, and relative `worker_path:` values start from its folder.
/// `vars` answers what an environment variable holds.
pub fn parse(text: &str, path: &Path, vars: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let reader = Reader { text, path, base: base_folder(path), vars };
    reader.config().map_err(|problem| problem.in_file(text, path))
}

fn base_folder(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.parent().map(Path::to_owned).unwrap_or(path)
}

/// Whether `name` may name a worker; the error says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let rule =
        "a worker's name is 1 to 63 of the characters a-z A-Z 0-9 . _ - and starts with a letter or a digit";
    if name.starts_with(RESERVED_PREFIX) {
        return Err(format!("names that start with `{RESERVED_PREFIX}` are kept for iii itself"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed)
        && name.len() <= MAX_NAME_CHARS;
    if valid { Ok(()) } else { Err(format!("`{}` cannot be a name: {rule}", name.escape_debug())) }
}

/// `~` and `~/...` start from the home folder; everything else stays as it is.
pub fn expand_home(text: &str, home: Option<String>) -> PathBuf {
    match (text.strip_prefix('~'), home.filter(|home| !home.is_empty())) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            Path::new(&home).join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(text),
    }
}

struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
    base: PathBuf,
    vars: Vars<'a>,
}

impl Reader<'_> {
    fn config(&self) -> Result<Config, Problem> {
        match tree::parse(self.text, MAX_FILE_BYTES)?.filter(|root| !root.is_null()) {
            Some(root) => self.top(&root),
            None => self.top(&Node::empty_map()),
        }
    }

    fn top(&self, root: &Node) -> Result<Config, Problem> {
        let top = Fields::of(root, "at the top of the file", TOP_KEYS)?;
        if let (Some(workers), Some(modules)) = (top.entry("workers"), top.entry("modules")) {
            let message = "`modules` is the old name of `workers`; the file has both";
            return Err(Problem::at(modules.key_span, message).also(workers.key_span, "the other one"));
        }
        let mut values = Values::new(self.vars);
        let orphan_grace = match top.get("orphan_grace") {
            Some(node) => values.parsed(node, "orphan_grace", "a duration", duration)?,
            None => None,
        };
        let mut insecure_registries = match top.get("insecure_registries") {
            Some(node) => insecure(node, &mut values)?,
            None => Vec::new(),
        };
        let registries = match top.get("registries") {
            Some(node) => registries(node, &mut values)?,
            None => BTreeMap::new(),
        };
        insecure_of_environment(self.vars, &mut insecure_registries)?;
        if let Some(missing) = values.missing.first() {
            let message =
                format!("`{}` needs the variable `{}`, which is not set", missing.key, missing.variable);
            return Err(Problem::at(missing.span, message).hint(how_to_set(&missing.variable)));
        }
        let workers = match top.get("workers").or_else(|| top.get("modules")) {
            Some(node) => self.workers(node)?,
            None => Vec::new(),
        };
        Ok(Config {
            workers,
            insecure_registries,
            registries,
            orphan_grace: orphan_grace.unwrap_or(DEFAULT_ORPHAN_GRACE),
        })
    }

    fn workers(&self, node: &Node) -> Result<Vec<WorkerConfig>, Problem> {
        let Value::List { items, .. } = &node.value else {
            let message = format!("`workers`: expected a list, found {}", node.kind());
            return Err(Problem::at(node.span, message).hint("each worker is an item: `- name: ...`"));
        };
        let mut seen = HashMap::new();
        let mut ports = Taken::default();
        let mut workers = Vec::with_capacity(items.len());
        for item in items {
            let worker = self.worker(item, &mut ports)?;
            let place = item.get("name").map_or(item.span, |name| name.span);
            if let Some(earlier) = seen.insert(worker.name.clone(), place) {
                let message = format!("there are two workers named `{}`", worker.name);
                return Err(Problem::at(place, message).also(earlier, "first here"));
            }
            workers.push(worker);
        }
        Ok(workers)
    }

    fn worker(&self, item: &Node, ports: &mut Taken) -> Result<WorkerConfig, Problem> {
        // The name first, for the messages about everything else.
        let place = match item.get("name").and_then(Node::text) {
            Some(name) => format!("in worker `{}`", name.escape_debug()),
            None => "in an item of `workers`".to_owned(),
        };
        let fields = Fields::of(item, &place, WORKER_KEYS)?;
        let name = match fields.get("name") {
            // Not expanded: edits and commands find a worker by what is written.
            Some(node) => fields::text(node, "name")?.text.clone(),
            None => return Err(Problem::at(head(item), "this worker has no `name`")),
        };
        check_name(&name)
            .map_err(|message| Problem::at(fields.get("name").map_or(item.span, |n| n.span), message))?;

        let mut values = Values::new(self.vars);
        let source = self.source(&fields, &place, &mut values)?;
        let watch = watch(&fields, &place)?;
        let (resources, own_resources) = match fields.get("resources") {
            Some(node) => resources(node, &place, &mut values)?,
            None => (default_resources(), OwnResources::default()),
        };
        let network = network(&fields, (&name, &place), &mut values, ports)?;
        let restart = match fields.get("restart") {
            Some(node) => restart(node, &place, &mut values)?,
            None => RestartConfig::default(),
        };
        let stop_timeout = match fields.get("stop_timeout") {
            Some(node) => values.parsed(node, "stop_timeout", "a duration", duration)?,
            None => None,
        };
        let boot_timeout = match fields.get("boot_timeout") {
            Some(node) => {
                values.parsed(node, "boot_timeout", "a duration", |text| match duration(text)? {
                    Duration::ZERO => Err("expected a duration longer than zero".to_owned()),
                    longer => Ok(longer),
                })?
            }
            None => None,
        };
        let env = match fields.get("config") {
            Some(node) => env::flatten(node, &mut values)?,
            None => Vec::new(),
        };
        let env = if values.missing.is_empty() { Ok(env) } else { Err(self.unset(&values.missing)) };
        let (env, engine) = match env.and_then(|env| Ok((self.engine(&env, fields.get("config"))?, env))) {
            Ok((engine, env)) => (Ok(env), engine),
            Err(error) => (Err(error), EngineUrl::default()),
        };
        let stop_timeout = stop_timeout.unwrap_or(DEFAULT_STOP_TIMEOUT);
        Ok(WorkerConfig {
            name,
            source,
            watch,
            env,
            engine,
            resources,
            own_resources,
            network,
            restart,
            stop_timeout,
            boot_timeout,
        })
    }

    /// The engine that the worker's variables choose. A wrong address is this worker's failure alone.
    fn engine(&self, env: &[(String, String)], config: Option<&Node>) -> Result<EngineUrl, ErrorBody> {
        let value = |name: &str| env.iter().find(|(key, value)| key == name && !value.is_empty());
        let Some((variable, text)) = ENGINE_VARIABLES.into_iter().find_map(value) else {
            return Ok(EngineUrl::default());
        };
        EngineUrl::parse(text).map_err(|why| {
            let line = config.map_or(1, |config| line_of(self.text, env::place(config, variable).start));
            let message =
                format!("{}:{line}: `{variable}` is no address of an engine: {why}", self.path.display());
            let hint = Some("write it like `ws://localhost:49134`, or take it out of `config:`".to_owned());
            ErrorBody { code: ErrorCode::BadConfig, message, hint }
        })
    }

    /// `worker_path:` wins over `image:`, but both are checked.
    fn source(&self, fields: &Fields<'_>, place: &str, values: &mut Values<'_>) -> Result<Source, Problem> {
        let image = match fields.get("image") {
            None => None,
            Some(node) => match values.text(node, "image")? {
                Some(image) => {
                    check_image(&image).map_err(|message| Problem::at(node.span, message))?;
                    Some(image)
                }
                // With an unset variable the worker fails by that; what is shown is what is written.
                None => node.text().map(str::to_owned),
            },
        };
        let path = match fields.get("worker_path") {
            None => None,
            Some(node) => {
                let written = values.text(node, "worker_path")?;
                let text = written.or_else(|| node.text().map(str::to_owned)).unwrap_or_default();
                Some(self.folder(&text))
            }
        };
        let exclude = exclude(fields, place, values)?;
        Ok(match (path, image) {
            (Some(path), _) => Source::Local { path, exclude },
            (None, Some(image)) => Source::Oci { image },
            (None, None) => Source::None,
        })
    }

    fn folder(&self, text: &str) -> PathBuf {
        let path = expand_home(text, (self.vars)("HOME"));
        // Takes out `.` and doubled slashes; `..` stays, since it means something else behind a link.
        self.base.join(path).components().collect()
    }

    fn unset(&self, missing: &[Missing]) -> ErrorBody {
        let needs: Vec<String> = missing
            .iter()
            .map(|m| {
                let line = line_of(self.text, m.span.start);
                let place = format!("{}:{line}", self.path.display());
                format!("{place}: `{}` needs the variable `{}`, which is not set", m.key, m.variable)
            })
            .collect();
        let hint = missing.first().map(|m| how_to_set(&m.variable));
        ErrorBody { code: ErrorCode::BadConfig, message: needs.join("\n"), hint }
    }
}

fn how_to_set(variable: &str) -> String {
    format!("`export {variable}=...` before `iii` is started, or give it a default: `${{{variable}:-...}}`")
}

/// The first key of a mapping, as the place to show for what it lacks.
pub(crate) fn head(item: &Node) -> tree::Span {
    match &item.value {
        Value::Map { entries, .. } => entries.first().map_or(item.span, |e: &Entry| e.key_span),
        _ => item.span,
    }
}

fn restart(node: &Node, place: &str, values: &mut Values<'_>) -> Result<RestartConfig, Problem> {
    let mut restart = RestartConfig::default();
    if let Value::Scalar(_) = node.value {
        if let Some(policy) = values.parsed(node, "restart", "a policy or a mapping", policy)? {
            restart.policy = policy;
        }
        return Ok(restart);
    }
    let fields = Fields::of(node, &format!("under `restart` {place}"), RESTART_KEYS)?;
    if let Some(node) = fields.get("policy")
        && let Some(policy) = values.parsed(node, "policy", "a restart policy", policy)?
    {
        restart.policy = policy;
    }
    if let Some(node) = fields.get("max_restarts") {
        let read = |text: &str| {
            text.trim().parse::<u32>().map_err(|_| format!("expected a whole number, found `{text}`"))
        };
        restart.max_restarts = values.parsed(node, "max_restarts", "a whole number", read)?;
    }
    let mut time = |key: &str| match fields.get(key) {
        Some(node) => values.parsed(node, key, "a duration", duration),
        None => Ok(None),
    };
    let (delay, max_delay, reset_after) = (time("delay")?, time("max_delay")?, time("reset_after")?);
    if let (Some(delay), Some(max_delay), Some(node)) = (delay, max_delay, fields.get("max_delay"))
        && max_delay < delay
    {
        return Err(Problem::at(node.span, "`max_delay` is shorter than `delay`"));
    }
    // Only one of the two is given: the other one's default gives way.
    restart.delay = delay.unwrap_or(restart.delay.min(max_delay.unwrap_or(Duration::MAX)));
    restart.max_delay = max_delay.unwrap_or(restart.max_delay.max(restart.delay));
    restart.reset_after = reset_after.unwrap_or(restart.reset_after);
    Ok(restart)
}

fn policy(text: &str) -> Result<RestartPolicy, String> {
    if let Some((_, policy)) = POLICIES.iter().find(|(word, _)| *word == text) {
        return Ok(*policy);
    }
    let words: Vec<&str> = POLICIES.iter().map(|(word, _)| *word).collect();
    match suggest(text, words.iter().copied()) {
        Some(meant) => Err(format!("unknown restart policy `{text}`; did you mean `{meant}`?")),
        None => Err(format!("unknown restart policy `{text}`; the policies are {}", words.join(", "))),
    }
}

/// Refuses only what no reference may have; the rest is the image store's to judge.
pub(crate) fn check_image(image: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@+[]".contains(c);
    if let Some(wrong) = image.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "`{}` is not an image reference: it contains `{}`",
            image.escape_debug(),
            wrong.escape_debug()
        ));
    }
    if let Some((scheme, rest)) = image.split_once("://") {
        return Err(format!("an image reference has no `{scheme}://`; did you mean `{rest}`?"));
    }
    if !image.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') {
        return Err(format!(
            "`{image}` is not an image reference: it has to start with a letter or a digit; a project folder is given as `worker_path`"
        ));
    }
    if image.len() > MAX_IMAGE_CHARS {
        return Err(format!(
            "an image reference has at most {MAX_IMAGE_CHARS} characters, this one has {}",
            image.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
