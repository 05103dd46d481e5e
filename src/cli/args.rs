//! The command line as clap reads it: types only.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use jiff::Timestamp;

/// Keeps workers alive, each in its own microVM.
///
/// Without a command it is the daemon: it runs every worker of config.yaml in the foreground until Ctrl-C.
#[derive(Debug, Parser)]
#[command(
    name = "iii",
    version,
    after_help = "Example:\n  iii worker add docker.io/library/redis:7   # write it into config.yaml\n  \
                  iii                                        # run everything in config.yaml"
)]
pub struct Cli {
    /// The config file; otherwise III_CONFIG_PATH, else config.yaml here or in a parent folder.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do; the daemon if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Top-level commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add, remove, list, start, stop and look at workers.
    #[command(subcommand, after_help = "Example:\n  iii worker list")]
    Worker(WorkerCommand),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  iii completions bash > ~/.local/share/bash-completion/completions/iii"
    )]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// `iii worker ...`.
#[derive(Debug, Subcommand)]
// Only what is asked for is made ready, at each start.
#[command(defer = true)]
pub enum WorkerCommand {
    /// Pull images, or take local projects, and add them to config.yaml; a running daemon starts them at once.
    #[command(after_help = "Examples:\n  iii worker add ghcr.io/my-org/my-worker:1.0.0\n  \
                            iii worker add redis:7 --name cache\n  iii worker add ./my-project\n  \
                            iii worker add ./my-project --dry-run")]
    Add(AddArgs),
    /// Stop workers, take them out of config.yaml and delete what they left. Images stay.
    #[command(visible_alias = "rm", after_help = "Example:\n  iii worker remove cache")]
    Remove(RemoveArgs),
    /// Show all workers and how they are.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  iii worker list\n  \
                            iii worker list --json | jq '.workers[].phase'"
    )]
    List(ListArgs),
    /// Start workers that are stopped; workers that failed are tried again.
    #[command(after_help = "Example:\n  iii worker start cache")]
    Start(StartArgs),
    /// Stop workers; they stay stopped until they are started again.
    #[command(after_help = "Examples:\n  iii worker stop cache\n  iii worker stop cache --timeout 30s")]
    Stop(StopArgs),
    /// Stop workers, then start them.
    #[command(after_help = "Example:\n  iii worker restart cache")]
    Restart(StopArgs),
    /// Work on a project: as long as this runs, each edit is brought into its running machine and the workload is
    /// restarted there; what happens and what it writes is shown. Ctrl-C leaves; the worker runs on.
    #[command(after_help = "Example:\n  iii worker dev my-project")]
    Dev(DevArgs),
    /// Show everything known about a worker, or about all.
    #[command(after_help = "Examples:\n  iii worker status cache\n  iii worker status cache --json")]
    Status(StatusArgs),
    /// Print what a worker wrote: its stdout to stdout, its stderr to stderr, and there with a mark what the setup and
    /// install of its project wrote.
    #[command(after_help = "Examples:\n  iii worker logs cache --follow\n  \
                            iii worker logs cache --since 10m --timestamps")]
    Logs(LogsArgs),
    /// Run a command inside a running worker; its exit code becomes this command's.
    #[command(after_help = "Examples:\n  iii worker exec cache -- redis-cli ping\n  \
                            iii worker exec cache sh                       # a shell, on a terminal\n  \
                            iii worker exec web -e LOG_LEVEL=debug -w /tmp -- ./probe\n  \
                            cat dump.sql | iii worker exec db --timeout 5m -- psql\n\n\
                            Exit codes:\n  \
                            that of the command; 128+N if signal N ended it; otherwise\n    \
                            2  wrong usage\n  \
                            124  --timeout was over\n  \
                            125  the daemon, the worker or the session failed\n  \
                            126  the program cannot be executed\n  \
                            127  there is no such program\n  \
                            130  killed by a second Ctrl-C")]
    Exec(ExecArgs),
    /// Copy files and folders into a running worker or out of it, as `docker cp` does.
    #[command(after_help = "Examples:\n  iii worker cp ./settings.toml web:/etc/app/\n  \
                            iii worker cp web:/var/log/app ./logs\n  \
                            iii worker cp web:/data - | tar -t")]
    Cp(CpArgs),
}

/// `iii worker add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Images, as Docker names them: `redis:7`, `ghcr.io/org/name@sha256:...`; or folders of local projects, which
    /// start with `.`, `/` or `~`.
    #[arg(required = true, value_name = "REF|PATH")]
    pub references: Vec<String>,
    /// The worker's name; otherwise the last part of the image's name, or what the project says.
    #[arg(long)]
    pub name: Option<String>,
    /// Pull again, delete the worker's disk (a project is installed from scratch) and replace its entry's image or
    /// path; its other keys are kept.
    #[arg(short, long)]
    pub force: bool,
    /// Also replace the rest of its entry in config.yaml.
    #[arg(long, requires = "force")]
    pub reset_config: bool,
    /// Do not wait until the worker runs.
    #[arg(long)]
    pub no_wait: bool,
    /// Of a project: leave out what matches, by git's patterns, besides what its .iiiignore says; kept in its entry.
    /// Repeatable.
    #[arg(long, value_name = "PATTERN", value_parser = NonEmptyStringValueParser::new())]
    pub exclude: Vec<String>,
    /// Of a project: only show what would be run and copied, and where each value comes from.
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: for programs.
    #[arg(long, requires = "dry_run")]
    pub json: bool,
}

/// `iii worker remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Workers.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Do not ask, on a terminal either.
    #[arg(short, long)]
    pub yes: bool,
}

/// `iii worker list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// For programs.
    #[arg(long)]
    pub json: bool,
}

/// `iii worker start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Workers.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Do not wait until they run.
    #[arg(long)]
    pub no_wait: bool,
}

/// `iii worker stop` and `restart`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Workers.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Do not wait for the end of it.
    #[arg(long)]
    pub no_wait: bool,
    /// How long a worker may take to end by itself before it is killed (`30s`, `0s` kills at once);
    /// otherwise its stop_timeout.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
}

/// `iii worker dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// The worker.
    pub name: String,
    /// Begin each line of its log with its time.
    #[arg(short, long)]
    pub timestamps: bool,
}

/// `iii worker status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// One worker; otherwise all of them.
    pub name: Option<String>,
    /// For programs.
    #[arg(long)]
    pub json: bool,
}

/// `iii worker logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The worker.
    pub name: String,
    /// Go on with what it writes from now on.
    #[arg(short, long, conflicts_with = "previous")]
    pub follow: bool,
    /// Only the last N lines.
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<u64>,
    /// Only what was written since: `10m` ago, or a time such as 2026-01-02T03:04:05Z.
    #[arg(long, value_name = "DURATION|TIME")]
    pub since: Option<Since>,
    /// Begin each line with its time.
    #[arg(short, long)]
    pub timestamps: bool,
    /// What it wrote before it was started the last time.
    #[arg(long)]
    pub previous: bool,
    /// Instead of what it wrote, what its network refused.
    #[arg(long)]
    pub events: bool,
    /// One JSON object per line, for programs.
    #[arg(long)]
    pub json: bool,
}

/// `iii worker exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The worker.
    pub name: String,
    /// A variable for the command, besides those of the worker; `KEY` alone takes its value from here.
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// The folder to run it in; otherwise /workspace.
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Who runs it; otherwise the worker's own user.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// With a terminal, even if stdin or stdout is none; by itself only if both are. Nothing with --detach.
    #[arg(short, long, conflicts_with = "no_tty")]
    pub tty: bool,
    /// Without a terminal: three streams, byte for byte.
    #[arg(long)]
    pub no_tty: bool,
    /// Accepted for the fingers' sake: stdin is always connected.
    #[arg(short, long)]
    pub interactive: bool,
    /// Kill it after this time (`30s`, `5m`, `1500ms`) and exit with 124.
    #[arg(long, value_name = "DURATION", value_parser = time_limit)]
    pub timeout: Option<Duration>,
    /// Print the session's number and leave it running, without input or terminal and its output thrown away.
    #[arg(short, long)]
    pub detach: bool,
    /// The program and its arguments; everything from here on is theirs.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn time_limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if limit.is_zero() => {
            Err("a command needs some time; leave it out for no limit".to_owned())
        }
        Ok(limit) => Ok(limit),
        Err(e) => Err(format!("{e} (such as 30s, 5m or 1500ms)")),
    }
}

/// `iii worker cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// What to copy: a path, WORKER:PATH, or `-` for a tar stream on stdin; with `/.` at its end the content
    /// of a folder.
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// Where to: a path, WORKER:PATH, or `-` for a tar stream on stdout. A path with a `:` in it begins with
    /// `./` or `/`.
    #[arg(value_name = "DST")]
    pub destination: OsString,
    /// Keep owners and groups (as root, when copying to this host).
    #[arg(short, long)]
    pub archive: bool,
    /// If SRC is a link, copy what it leads to.
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Show no progress.
    #[arg(short, long)]
    pub quiet: bool,
}

/// A point in time, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Before now.
    Ago(Duration),
    /// Then.
    At(Timestamp),
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Since, String> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Since::Ago(ago));
        }
        text.parse()
            .map(Since::At)
            .map_err(|_| "neither a duration such as 10m nor a time such as 2026-01-02T03:04:05Z".to_owned())
    }
}

impl Since {
    /// The point in time; one before all time is the beginning of it.
    pub fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Since::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
            Since::At(then) => then,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "`{}` has no example", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn the_config_flag_may_come_last() {
        let cli = Cli::try_parse_from(["iii", "worker", "list", "-c", "x.yaml"]).unwrap();
        assert_eq!(cli.config.unwrap(), PathBuf::from("x.yaml"));
    }

    #[test]
    fn reset_config_alone_is_refused() {
        let error = Cli::try_parse_from(["iii", "worker", "add", "redis", "--reset-config"]).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        let error = Cli::try_parse_from(["iii", "worker", "add", "./p", "--exclude", ""]).unwrap_err();
        assert!(error.to_string().contains("--exclude"), "{error}");
    }

    fn exec(args: &[&str]) -> Result<ExecArgs, clap::Error> {
        let all = ["iii", "worker", "exec"].iter().chain(args);
        match Cli::try_parse_from(all)?.command {
            Some(Command::Worker(WorkerCommand::Exec(args))) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_of_exec_stand_before_or_after_the_name_and_the_rest_is_the_command() {
        for args in [
            &["web", "-e", "A=1", "-w", "/tmp", "--", "./probe", "-x", "--", "-e"][..],
            &["-e", "A=1", "web", "-w", "/tmp", "./probe", "-x", "--", "-e"],
            &["-e", "A=1", "-w", "/tmp", "web", "--", "./probe", "-x", "--", "-e"],
            &["-eA=1", "--workdir=/tmp", "web", "./probe", "-x", "--", "-e"],
        ] {
            let exec = exec(args).unwrap();
            assert_eq!(exec.name, "web", "{args:?}");
            assert_eq!(exec.command, ["./probe", "-x", "--", "-e"], "{args:?}");
            assert_eq!(
                (exec.env.as_slice(), exec.workdir.as_deref()),
                (&["A=1".to_owned()][..], Some("/tmp"))
            );
        }
        let habit = exec(&["-it", "web", "sh", "-c", "exit 7"]).unwrap();
        assert!(habit.tty && habit.interactive);
        assert_eq!(habit.command, ["sh", "-c", "exit 7"]);
        for habit in ["-itd", "-dit", "-tid", "-id", "-td"] {
            let all = exec(&[habit, "web", "true"]).unwrap();
            let given = [(all.interactive, 'i'), (all.tty, 't'), (all.detach, 'd')];
            assert!(given.iter().all(|&(set, flag)| set == habit.contains(flag)), "{habit}: {all:?}");
        }
        assert_eq!(exec(&["web", "--", "-dash"]).unwrap().command, ["-dash"]);
    }

    #[test]
    fn wrong_command_lines_of_exec_are_told() {
        for (args, told) in [
            (&["web"][..], "COMMAND"),
            (&["web", "--"], "COMMAND"),
            (&["web", "--timeout", "0s", "true"], "needs some time"),
            (&["web", "--timeout", "soon", "true"], "such as 30s"),
            (&["web", "--timeout", "5", "true"], "such as 30s"),
            (&["web", "-t", "--no-tty", "true"], "--no-tty"),
            (&["web", "--what", "true"], "--what"),
        ] {
            let error = exec(args).unwrap_err().to_string();
            assert!(error.contains(told), "{args:?}: {error}");
        }
    }

    #[test]
    fn since_takes_durations_and_times() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let at = |text: &str| text.parse::<Since>().map(|since| since.resolve(now).to_string());
        assert_eq!(at("10m").unwrap(), "2026-01-02T02:54:05Z");
        assert_eq!(at("2025-12-31T00:00:00+01:00").unwrap(), "2025-12-30T23:00:00Z");
        assert!(at("yesterday").unwrap_err().contains("10m"));
        assert_eq!("9999999y".parse::<Since>().map(|s| s.resolve(now)), Ok(Timestamp::MIN));
    }
}
