use iii_protocol::api::Resources;
use iii_protocol::network::Network;

use super::*;
use crate::config::network::{EGRESS_KEYS, NETWORK_KEYS};
use crate::config::registries::{INSECURE_REGISTRIES_ENV, REGISTRY_KEYS};
use crate::config::resources::RESOURCE_KEYS;
use crate::config::schema::RegistryConfig;

fn vars(name: &str) -> Option<String> {
    match name {
        "HOME" => Some("/home/u".to_owned()),
        "SET" => Some("value".to_owned()),
        "EMPTY" => Some(String::new()),
        "NUMBER" => Some("512".to_owned()),
        "EVIL" => Some("a\n  - name: evil".to_owned()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Config, String> {
    parse(text, Path::new("/p/config.yaml"), &vars).map_err(|e| e.to_string())
}

fn worker(fields: &str) -> WorkerConfig {
    read(&format!("workers:\n  - {{name: w, {fields}}}\n")).unwrap().workers.remove(0)
}

fn env(text: &str) -> Vec<(String, String)> {
    let text = format!("workers:\n  - name: w\n    config:\n{text}");
    read(&text).unwrap().workers.remove(0).env.unwrap()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The message of an error, without the lines that show the place.
fn fault(text: &str) -> String {
    let shown = read(text).expect_err(text);
    shown.lines().next().unwrap().trim_start_matches("/p/config.yaml:").to_owned()
}

#[test]
fn a_file_that_says_nothing_has_no_workers_and_the_defaults() {
    for text in [
        "",
        "# c\n",
        "---\n",
        "workers:\n",
        "workers: []",
        "workers: ~",
        "modules: []",
        "{}",
        "\u{feff}workers: []",
        "rootfs: {mode: overlay}",
    ] {
        let config = read(text).unwrap();
        assert_eq!(config.workers, [], "{text}");
        assert_eq!(config.insecure_registries, Vec::<String>::new(), "{text}");
        assert_eq!(config.orphan_grace, Duration::from_secs(60), "{text}");
    }
}

#[test]
fn a_worker_that_says_only_its_name_has_the_defaults() {
    for text in
        ["workers:\n  - name: w\n", "modules: [{name: w, image: , config: ~, resources:, restart: null}]"]
    {
        assert_eq!(
            read(text).unwrap().workers,
            [WorkerConfig {
                name: "w".to_owned(),
                source: Source::None,
                watch: false,
                env: Ok(Vec::new()),
                engine: EngineUrl::default(),
                network: Network::default(),
                resources: Resources { memory_mib: 2048, cpus: 2, disk_bytes: 16 << 30 },
                own_resources: OwnResources::default(),
                restart: RestartConfig {
                    policy: RestartPolicy::UnlessStopped,
                    max_restarts: None,
                    delay: Duration::from_millis(250),
                    max_delay: Duration::from_secs(30),
                    reset_after: Duration::from_secs(60),
                },
                stop_timeout: Duration::from_secs(10),
                boot_timeout: None,
            }]
        );
    }
}

#[test]
fn every_key_is_read() {
    let config = read(
        "insecure_registries: [reg:5000, '10.0.0.1', reg:5000]
orphan_grace: 2m
workers:
  - name: a
    image: ghcr.io/o/r:1@sha256:00
    resources: {memory: 4GiB, cpus: 3, disk: 1GiB}
    restart: {policy: on-failure, max_restarts: 7, delay: 1s, max_delay: 2s, reset_after: 3s}
    stop_timeout: 4
    boot_timeout: 5s
  - name: b
    image: x
    worker_path: ./p
    exclude: ['*.log']
    resources: {cpus: 2}
    restart: never
",
    )
    .unwrap();
    assert_eq!(config.insecure_registries, ["reg:5000", "10.0.0.1"]);
    assert_eq!(config.orphan_grace, Duration::from_secs(120));
    let [a, b] = &config.workers[..] else { panic!("{config:?}") };
    assert_eq!(a.source, Source::Oci { image: "ghcr.io/o/r:1@sha256:00".to_owned() });
    assert_eq!(a.resources, Resources { memory_mib: 4096, cpus: 3, disk_bytes: 1 << 30 });
    assert_eq!(
        a.own_resources,
        OwnResources { memory_mib: Some(4096), cpus: Some(3), disk_bytes: Some(1 << 30) }
    );
    let seconds = Duration::from_secs;
    let policy = RestartPolicy::OnFailure;
    let restart = RestartConfig {
        policy,
        max_restarts: Some(7),
        delay: seconds(1),
        max_delay: seconds(2),
        reset_after: seconds(3),
    };
    assert_eq!((a.restart, a.stop_timeout, a.boot_timeout), (restart, seconds(4), Some(seconds(5))));
    assert_eq!(b.source, Source::Local { path: "/p/p".into(), exclude: vec!["*.log".to_owned()] });
    assert_eq!(b.own_resources, OwnResources { cpus: Some(2), ..OwnResources::default() });
    assert_eq!(b.restart.policy, RestartPolicy::Never);
}

#[test]
fn values_are_taken_in_every_form_they_may_have() {
    for (text, mib) in [
        ("512", 512),
        ("'512'", 512),
        ("512MiB", 512),
        ("2GiB", 2048),
        ("2g", 2048),
        ("\"${NUMBER}\"", 512),
        ("\"${NO:-1GiB}\"", 1024),
    ] {
        assert_eq!(worker(&format!("resources: {{memory: {text}}}")).resources.memory_mib, mib, "{text}");
    }
    for (text, policy) in [
        ("always", RestartPolicy::Always),
        ("unless-stopped", RestartPolicy::UnlessStopped),
        ("on-failure", RestartPolicy::OnFailure),
        ("\"never\"", RestartPolicy::Never),
    ] {
        assert_eq!(worker(&format!("restart: {text}")).restart.policy, policy);
        assert_eq!(worker(&format!("restart: {{policy: {text}}}")).restart.policy, policy);
    }
    for (text, path) in [
        ("/a/./b//c", "/a/b/c"),
        ("~/x", "/home/u/x"),
        ("'~'", "/home/u"),
        ("p/../q", "/p/p/../q"),
        ("~x", "/p/~x"),
        ("\"${SET}/x\"", "/p/value/x"),
    ] {
        assert_eq!(
            worker(&format!("worker_path: {text}")).source,
            Source::Local { path: path.into(), exclude: vec![] },
            "{text}"
        );
    }
    // The other of the two delays gives way to the one that is given.
    assert_eq!(worker("restart: {max_delay: 100ms}").restart.delay, Duration::from_millis(100));
    assert_eq!(worker("restart: {delay: 1h}").restart.max_delay, Duration::from_secs(3600));
}

#[test]
fn a_wrong_value_is_told_with_what_was_expected_and_what_was_found() {
    for (fields, want) in [
        ("image: 1", "`image`: expected text, found a number; if it is meant, quote it: \"1\""),
        ("image: true", "`image`: expected text, found a boolean; if it is meant, quote it: \"true\""),
        ("image: [x]", "`image`: expected text, found a list"),
        ("image: {x: y}", "`image`: expected text, found a mapping"),
        ("image: ''", "`image` may not be empty or contain a NUL character"),
        ("image: a b", "`a b` is not an image reference: it contains ` `"),
        ("image: 'https://r/x'", "an image reference has no `https://`; did you mean `r/x`?"),
        (
            "image: ./x",
            "`./x` is not an image reference: it has to start with a letter or a digit; a project folder is given as `worker_path`",
        ),
        ("worker_path: 1", "`worker_path`: expected text, found a number; if it is meant, quote it: \"1\""),
        ("config: [a]", "`config`: expected a mapping, found a list"),
        ("config: x", "`config`: expected a mapping, found text"),
        (
            "config: {a=b: 1}",
            "a key of `config` names an environment variable: it may not be empty or contain `=` or NUL",
        ),
        (
            "config: {a: {'': 1}}",
            "a key of `config` names an environment variable: it may not be empty or contain `=` or NUL",
        ),
        ("config: {a: \"\\0\"}", "`config.a` contains a NUL character"),
        ("config: {a: \"${b\"}", "`${` has no closing `}` in `config.a`"),
        ("config: {a: \"${1}\"}", "`1` is not the name of a variable in `config.a`"),
        ("resources: 5", "expected a mapping under `resources` in worker `w`, found a number"),
        (
            "resources: {memory: []}",
            "`memory`: expected a number of MiB or a size such as `2GiB`, found a list",
        ),
        ("resources: {memory: yes}", "`memory`: expected a size such as `512MiB` or `2GiB`, found `yes`"),
        ("resources: {memory: 2GB}", "`memory`: `2GB` can be read in two ways; did you mean `2GiB`?"),
        ("resources: {memory: 1.5}", "`memory`: expected a size such as `512MiB` or `2GiB`, found `1.5`"),
        ("resources: {memory: 1}", "`memory`: 1 MiB is outside of what is possible, 64 MiB to 1048576 MiB"),
        ("resources: {memory: 70000KiB}", "`memory`: `70000KiB` is not a whole number of MiB"),
        ("resources: {cpus: 0}", "`cpus`: expected a whole number from 1 to 64, found `0`"),
        ("resources: {cpus: 0.5}", "`cpus`: expected a whole number from 1 to 64, found `0.5`"),
        ("resources: {cpus: true}", "`cpus`: expected a whole number, found a boolean"),
        ("resources: {disk: 16}", "`disk`: expected a size with its unit, found `16`; did you mean `16GiB`?"),
        ("resources: {disk: 1MiB}", "`disk`: 1 MiB is outside of what is possible, 64 MiB to 67108864 MiB"),
        (
            "restart: sometimes",
            "`restart`: unknown restart policy `sometimes`; the policies are always, unless-stopped, on-failure, never",
        ),
        ("restart: onfailure", "`restart`: unknown restart policy `onfailure`; did you mean `on-failure`?"),
        ("restart: [never]", "expected a mapping under `restart` in worker `w`, found a list"),
        ("restart: false", "`restart`: expected a policy or a mapping, found a boolean"),
        ("restart: {max_restarts: -1}", "`max_restarts`: expected a whole number, found `-1`"),
        ("restart: {delay: 2s, max_delay: 1s}", "`max_delay` is shorter than `delay`"),
        (
            "restart: {delay: soon}",
            "`delay`: expected a duration such as `10s`, `1m 30s` or `250ms`, found `soon`",
        ),
        (
            "stop_timeout: 10 parsecs",
            "`stop_timeout`: expected a duration such as `10s`, `1m 30s` or `250ms`, found `10 parsecs`",
        ),
        (
            "stop_timeout: 9000h",
            "`stop_timeout`: expected a duration such as `10s`, `1m 30s` or `250ms`, found `9000h`, which is longer than a year",
        ),
        ("boot_timeout: 0", "`boot_timeout`: expected a duration longer than zero"),
        ("imgae: x", "unknown key `imgae` in worker `w`; did you mean `image`?"),
        ("env: {A: 1}", "unknown key `env` in worker `w`; environment variables are written under `config:`"),
        ("memory: 1", "unknown key `memory` in worker `w`; `memory` belongs under `resources:`"),
        ("frobnicate: 1", "unknown key `frobnicate` in worker `w`"),
        ("resources: {cpu: 1}", "unknown key `cpu` under `resources` in worker `w`; did you mean `cpus`?"),
        (
            "restart: {maxdelay: 1}",
            "unknown key `maxdelay` under `restart` in worker `w`; did you mean `max_delay`?",
        ),
        ("image: a, image: b", "the key `image` is there twice"),
    ] {
        let message = fault(&format!("workers: [{{name: w, {fields}}}]"));
        let message = message.splitn(3, ':').nth(2).unwrap().trim();
        assert_eq!(message, want, "{fields}");
    }
}

#[test]
fn a_wrong_file_is_told_with_line_and_column() {
    for (text, want) in [
        ("- name: w", "1:1: expected a mapping at the top of the file, found a list"),
        ("workers: 5", "1:10: `workers`: expected a list, found a number"),
        ("workers: {a: {image: x}}", "1:10: `workers`: expected a list, found a mapping"),
        ("workers: [w]", "1:11: expected a mapping in an item of `workers`, found text"),
        ("workers:\n  -\n", "2:4: expected a mapping in an item of `workers`, found nothing"),
        ("workers:\n  - image: x\n", "2:5: this worker has no `name`"),
        ("workers: [{name: }]", "1:12: this worker has no `name`"),
        ("worker: []", "1:1: unknown key `worker` at the top of the file; did you mean `workers`?"),
        ("workers: []\nmodules: []", "2:1: `modules` is the old name of `workers`; the file has both"),
        ("workers: []\nworkers: []", "2:1: the key `workers` is there twice"),
        (
            "workers: []\n---\nworkers: []",
            "2:1: a second document starts here; the file has to be one document",
        ),
        ("[a]: b", "1:1: a key has to be text, not a list or a mapping"),
        ("insecure_registries: r", "1:22: `insecure_registries`: expected a list, found text"),
        (
            "insecure_registries: ['http://r/']",
            "1:23: `http://r/` is not a registry: expected `host` or `host:port`; did you mean `r`?",
        ),
        ("registries: [a]", "1:13: `registries`: expected a mapping, found a list"),
        (
            "registries: {docker.io: localhost:5050}",
            "1:25: expected a mapping under `registries` for `docker.io`, found text",
        ),
        (
            "registries: {'https://docker.io': {mirror: m}}",
            "1:14: `https://docker.io` is not a registry: expected `host` or `host:port`; did you mean `docker.io`?",
        ),
        (
            "registries: {docker.io: {miror: m}}",
            "1:26: unknown key `miror` under `registries` for `docker.io`; did you mean `mirror`?",
        ),
        (
            "registries: {docker.io: {mirror: 'm/path'}}",
            "1:34: `m/path` is not a registry: expected `host` or `host:port`; did you mean `m`?",
        ),
        (
            "registries: {docker.io: {mirror: 5050}}",
            "1:34: `registries.docker.io.mirror`: expected text, found a number; if it is meant, quote it: \"5050\"",
        ),
        ("registries: {m: {mirror: M}}", "1:26: `m` cannot be its own mirror"),
        (
            "registries: {m: {mirror: '${NO}'}}",
            "1:26: `registries.m.mirror` needs the variable `NO`, which is not set",
        ),
        (
            "orphan_grace: never",
            "1:15: `orphan_grace`: expected a duration such as `10s`, `1m 30s` or `250ms`, found `never`",
        ),
        ("orphan_grace: ${NO}", "1:15: `orphan_grace` needs the variable `NO`, which is not set"),
        ("a: &a [*a]", "1:8: this alias refers to something it is part of"),
        ("a: !env x", "1:9: the tag `!env` means nothing here"),
    ] {
        assert_eq!(fault(text), want, "{text}");
    }
}

#[test]
fn names_are_checked() {
    for name in ["a", "A9", "0", "a.b_c-d", &"x".repeat(63)] {
        assert_eq!(read(&format!("workers: [{{name: \"{name}\"}}]")).unwrap().workers[0].name, name);
    }
    for name in [".", "..", "-a", "_a", "a/b", "a b", "é", "a\\u0000", "${SET}", "iii.sock", &"x".repeat(64)]
    {
        read(&format!("workers: [{{name: \"{name}\"}}]")).expect_err(name);
    }
    assert_eq!(
        fault("workers: [{name: 12}]"),
        "1:18: `name`: expected text, found a number; if it is meant, quote it: \"12\""
    );
}

#[test]
fn an_error_shows_the_line_with_a_caret() {
    insta::assert_snapshot!(read("workers:\n  - name: a\n    resorces:\n      memory: 1\n").unwrap_err(), @r"
    /p/config.yaml:3:5: unknown key `resorces` in worker `a`; did you mean `resources`?
      |
    3 |     resorces:
      |     ^^^^^^^^
    ");
    insta::assert_snapshot!(read("workers:\n  - name: a\n    image: x\n  - image: y\n    name: \"a\"\n").unwrap_err(), @r#"
    /p/config.yaml:5:11: there are two workers named `a`
      |
    5 |     name: "a"
      |           ^^^
      |
    2 |   - name: a
      |           ^ first here
    "#);
    insta::assert_snapshot!(read("workers:\n  - name: a\n   image: x\n").unwrap_err(), @r"
    /p/config.yaml:3:4: while parsing a block collection, did not find expected '-' indicator
      |
    3 |    image: x
      |    ^
    ");
    insta::assert_snapshot!(read("workers:\n\t- name: a\n").unwrap_err(), @r"
    /p/config.yaml:2:2: tabs disallowed within this context (block indentation)
      |
    2 |  - name: a
      |  ^
    ");
}

#[test]
fn of_a_long_line_the_part_around_the_caret_is_shown() {
    let many: String = (0..40).map(|n| format!("K{n}: valüe, ")).collect();
    let error = read(&format!("workers: [{{name: a, config: {{{many} K1: x, {many}}}}}]")).unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    assert!(lines[0].ends_with(": the key `K1` is there twice"), "{error}");
    let caret = lines[3].chars().position(|c| c == '^').unwrap();
    let shown: Vec<char> = lines[2].chars().collect();
    assert_eq!(shown[caret..caret + 5].iter().collect::<String>(), "K1: x");
    assert!(shown.len() < 120, "{error}");
}

#[test]
fn an_error_becomes_a_reply_with_its_hint() {
    let error = parse("workers: [{name: a, volumes: []}]", Path::new("c.yaml"), &vars).unwrap_err();
    let body = ErrorBody::from(&error);
    assert_eq!(body.code, ErrorCode::BadConfig);
    assert!(
        body.message.starts_with("c.yaml:1:21: unknown key `volumes` in worker `a`\n"),
        "{}",
        body.message
    );
    assert!(body.hint.unwrap().starts_with("the keys known here are: name, image, worker_path"));
    assert_eq!(error.position(), Some((1, 21)));
    assert!(!error.is_missing());
    let missing = load(Path::new("/nowhere/config.yaml")).unwrap_err();
    assert!(missing.is_missing());
    assert_eq!(
        missing.to_string(),
        "cannot read /nowhere/config.yaml: No such file or directory (os error 2)"
    );
}

#[test]
fn the_environment_is_flattened_and_upper_cased() {
    assert_eq!(
        env("
      DB_URL: x
      http_proxy: p
      db: {host: h, Port: 5432, deep: {a-b: 1}}
      list: [1, 1.5, yes, true, ~, 'two', {a: [\"${SET}\"]}]
      nested:
        list: []
      empty:
      tilde: ~
      quoted: '~'
      float: 1.50
      exp: 1e3
      yes: no
      bool: True
      text: \"a\\nb\"
      nothing: {}
"),
        pairs(&[
            ("DB_URL", "x"),
            ("HTTP_PROXY", "p"),
            ("http_proxy", "p"),
            ("DB_HOST", "h"),
            ("DB_PORT", "5432"),
            ("DB_DEEP_A-B", "1"),
            ("LIST", r#"[1,1.5,"yes",true,null,"two",{"a":["value"]}]"#),
            ("list", r#"[1,1.5,"yes",true,null,"two",{"a":["value"]}]"#),
            ("NESTED_LIST", "[]"),
            ("EMPTY", ""),
            ("empty", ""),
            ("TILDE", ""),
            ("tilde", ""),
            ("QUOTED", "~"),
            ("quoted", "~"),
            ("FLOAT", "1.50"),
            ("float", "1.50"),
            ("EXP", "1e3"),
            ("exp", "1e3"),
            ("YES", "no"),
            ("yes", "no"),
            ("BOOL", "True"),
            ("bool", "True"),
            ("TEXT", "a\nb"),
            ("text", "a\nb"),
        ])
    );
}

#[test]
fn of_two_keys_that_give_one_variable_the_later_counts() {
    assert_eq!(
        env("      DB_HOST: a\n      Z: 1\n      DB: {HOST: b}\n"),
        pairs(&[("DB_HOST", "b"), ("Z", "1")])
    );
    assert_eq!(env("      A: 1\n      a: 2\n"), pairs(&[("A", "2"), ("a", "2")]));
}

#[test]
fn variables_are_expanded_but_never_change_the_structure() {
    assert_eq!(
        env(
            "      A: ${SET}-${NO:d}-${EMPTY:-e}-$$-$x\n      B: '${EVIL}'\n      C: ${EMPTY}\n      D: \"${NUMBER}\"\n"
        ),
        pairs(&[("A", "value-d-e-$-$x"), ("B", "a\n  - name: evil"), ("C", ""), ("D", "512")])
    );
    assert_eq!(worker("image: 'r/${SET}:1'").source, Source::Oci { image: "r/value:1".to_owned() });
}

#[test]
fn an_address_that_is_no_engines_fails_its_worker_alone() {
    let config = read(
        "workers:
  - name: a
    config:
      LOG: x
      iii: {url: 'tcp://user:secret@h'}
  - name: b
    config: {III_ENGINE_URL: 'ws://', III_URL: 'ws://ok'}
  - name: c
    config: {III_URL: 'ws://10.0.0.1:5000/x'}
  - name: d
    config: {III_URL: }
",
    )
    .unwrap();
    let [a, b, c, d] = &config.workers[..] else { panic!("{config:?}") };
    let error = a.env.clone().unwrap_err();
    assert_eq!(error.code, ErrorCode::BadConfig);
    insta::assert_snapshot!(error.message, @"/p/config.yaml:5: `III_URL` is no address of an engine: `tcp://` is none of the schemes ws://, wss://, http://, https://");
    insta::assert_snapshot!(error.hint.unwrap(), @"write it like `ws://localhost:49134`, or take it out of `config:`");
    let error = b.env.clone().unwrap_err();
    assert_eq!(
        error.message,
        "/p/config.yaml:7: `III_ENGINE_URL` is no address of an engine: it names no host"
    );
    assert_eq!((c.env.is_ok(), c.engine.in_guest().as_str()), (true, "ws://localhost:5000/x"));
    assert_eq!((d.env.is_ok(), &d.engine), (true, &EngineUrl::default()));
}

#[test]
fn an_unset_variable_fails_its_worker_alone() {
    let config = read(
        "workers:
  - name: a
    config:
      URL: x
      keys: [1, '${API_KEY}']
      db: {pass: '${DB_PASS}'}
  - name: b
    image: r/${TAG}
  - name: c
    worker_path: ${WHERE}/x
    resources: {memory: '${MEM}'}
  - name: d
    config: {A: ok}
",
    )
    .unwrap();
    let [a, b, c, d] = &config.workers[..] else { panic!("{config:?}") };
    let error = a.env.clone().unwrap_err();
    assert_eq!(error.code, ErrorCode::BadConfig);
    insta::assert_snapshot!(error.message, @r"
    /p/config.yaml:5: `config.keys` needs the variable `API_KEY`, which is not set
    /p/config.yaml:6: `config.db.pass` needs the variable `DB_PASS`, which is not set
    ");
    insta::assert_snapshot!(error.hint.unwrap(), @"`export API_KEY=...` before `iii` is started, or give it a default: `${API_KEY:-...}`");
    assert_eq!(b.source, Source::Oci { image: "r/${TAG}".to_owned() });
    assert!(b.env.clone().unwrap_err().message.contains(":8: `image` needs the variable `TAG`"));
    assert_eq!(c.source, Source::Local { path: "/p/${WHERE}/x".into(), exclude: vec![] });
    assert_eq!(c.env.clone().unwrap_err().message.lines().count(), 2);
    assert_eq!(d.env, Ok(pairs(&[("A", "ok"), ("a", "ok")][..1])));
}

#[test]
fn anchors_aliases_and_merges_work() {
    let config = read(
        "workers:
  - &base
    name: a
    image: x
    config: &env {A: 1, B: 2}
    restart: &r {policy: never}
  - <<: *base
    name: b
    config: {<<: *env, B: 3}
  - {name: c, restart: *r, config: {<<: [*env, {C: 4, A: 5}]}}
",
    )
    .unwrap();
    let [_, b, c] = &config.workers[..] else { panic!("{config:?}") };
    assert_eq!(b.source, Source::Oci { image: "x".to_owned() });
    assert_eq!(b.env, Ok(pairs(&[("A", "1"), ("B", "3")])));
    assert_eq!(c.env, Ok(pairs(&[("A", "1"), ("B", "2"), ("C", "4")])));
    assert_eq!(c.restart.policy, RestartPolicy::Never);
}

#[test]
fn a_file_that_would_fill_the_memory_is_refused() {
    let mut bomb = "a: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..12 {
        let inner = vec![format!("*a{}", n - 1); 10].join(",");
        bomb += &format!("b{n}: &a{n} [{inner}]\n");
    }
    assert!(read(&bomb).unwrap_err().contains("too large with its aliases written out"));
    assert!(read(&"#".repeat(2 << 20)).unwrap_err().contains("more than the limit"));
    read(&format!("a: {}", "[".repeat(100_000))).unwrap_err();
    read(&"- ".repeat(100_000)).unwrap_err();
}

#[test]
fn registries_of_the_environment_are_added() {
    let with = |list: &'static str| {
        let vars = move |name: &str| (name == INSECURE_REGISTRIES_ENV).then(|| list.to_owned());
        parse("insecure_registries: [a]", Path::new("c.yaml"), &vars).map(|c| c.insecure_registries)
    };
    assert_eq!(with(" b:80, a ,,c").unwrap(), ["a", "b:80", "c"]);
    assert_eq!(with("").unwrap(), ["a"]);
    assert_eq!(
        with("http://b").unwrap_err().to_string(),
        "c.yaml: the variable III_INSECURE_REGISTRIES: `http://b` is not a registry: expected `host` or `host:port`; did you mean `b`?"
    );
}

#[test]
fn the_example_file_is_valid_and_names_every_key() {
    let text = include_str!("../../../config.yaml.example");
    let vars = |name: &str| (name == "API_KEY").then(|| "k".to_owned());
    let config = parse(text, Path::new("/p/config.yaml"), &vars).unwrap();
    assert!(config.workers.iter().all(|w| w.env.is_ok()), "{config:?}");
    // Everything that is commented out is valid as well: a line `#key: value` is one without its `#`.
    let all: String = text
        .lines()
        .map(|line| match line.split_once('#') {
            Some((indent, rest))
                if indent.trim().is_empty()
                    && rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '-') =>
            {
                format!("{indent}{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    parse(&all, Path::new("/p/config.yaml"), &vars).unwrap();
    let network = NETWORK_KEYS.iter().chain(EGRESS_KEYS);
    let registries = REGISTRY_KEYS.iter();
    let keys = TOP_KEYS.iter().chain(WORKER_KEYS).chain(RESOURCE_KEYS).chain(RESTART_KEYS);
    for key in keys.chain(network).chain(registries) {
        let kept_for_old_files = ["modules", "rootfs"].contains(key);
        assert!(
            kept_for_old_files
                || all.lines().any(|l| l.trim_start_matches([' ', '-']).starts_with(&format!("{key}:"))),
            "{key}"
        );
    }
}

#[test]
fn registries_have_mirrors() {
    let config = read("registries:\n  docker.io: {mirror: 'localhost:5050'}\n  ghcr.io: {mirror: }\n  r: {mirror: \"${SET}\"}\n").unwrap();
    let mirror = |name: &str| config.registries[name].clone();
    assert_eq!(mirror("docker.io"), RegistryConfig { mirror: Some("localhost:5050".to_owned()) });
    assert_eq!(mirror("ghcr.io"), RegistryConfig { mirror: None });
    let mirrors: Vec<_> = config.mirrors().into_iter().collect();
    assert_eq!(mirrors, pairs(&[("docker.io", "localhost:5050"), ("r", "value")]));
}
