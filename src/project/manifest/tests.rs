use super::*;

fn read(text: &str) -> Result<Manifest, String> {
    parse(text, Path::new("/p/iii.worker.yaml"), false).map_err(|e| e.to_string())
}

/// The first line of the error, without the path.
fn fault(text: &str) -> String {
    let error = read(text).expect_err(text);
    error.lines().next().unwrap().trim_start_matches("/p/iii.worker.yaml:").to_owned()
}

#[test]
fn a_manifest_needs_no_name_where_the_worker_has_one() {
    let named = |text: &str| parse(text, Path::new("/p/iii.worker.yaml"), true).map_err(|e| e.to_string());
    for text in ["", "name:\n", "runtime: {kind: python}\n"] {
        assert_eq!(named(text).unwrap().name, None, "{text}");
    }
    assert_eq!(named("name: w\n").unwrap().name, text("w", 1));
    assert!(named("name: a b\n").unwrap_err().contains("`a b` cannot be a name"));
}

fn at<T>(value: T, line: usize) -> Option<Placed<T>> {
    Some(Placed { value, line })
}

fn text(value: &str, line: usize) -> Option<Placed<String>> {
    at(value.to_owned(), line)
}

const SEED_NODE: &str = r#"name: my-worker
runtime:
  kind: typescript
  package_manager: npm
  entry: src/index.ts
resources:
  memory: 2048
  cpus: 2
scripts:
  setup: "apt-get update && apt-get install -y build-essential"
  install: "npm install"
  start: "npx tsx src/index.ts"
env:
  MY_API_KEY: sk-abc123
  LOG_LEVEL: debug
"#;
const SEED_BUN: &str = r#"name: my-worker
runtime:
  kind: bun
  entry: src/index.ts
resources:
  memory: 2048
  cpus: 2
scripts:
  install: "bun install"
  start: "bun run src/index.ts"
env:
  MY_API_KEY: sk-abc123
  LOG_LEVEL: debug
"#;
const SEED_PYTHON: &str = r#"name: my-worker
runtime:
  kind: python
  entry: worker.py
resources:
  memory: 2048
  cpus: 2
scripts:
  setup: "apt-get update && apt-get install -y build-essential"
  install: "pip install -r requirements.txt"
  start: "python worker.py"
env:
  MY_API_KEY: sk-abc123
  LOG_LEVEL: debug
"#;
const SEED_RUST: &str = r#"name: my-worker
runtime:
  kind: rust
resources:
  memory: 2048
  cpus: 2
scripts:
  setup: "apt-get update && apt-get install -y build-essential"
  install: "cargo build --release"
  start: "./target/release/my-worker"
env:
  MY_API_KEY: sk-abc123
  LOG_LEVEL: debug
"#;

#[test]
fn the_documented_manifests_give_exactly_their_scripts() {
    const APT: &str = "apt-get update && apt-get install -y build-essential";
    for (manifest, kind, setup, install, start) in [
        (SEED_NODE, Kind::Typescript, Some(APT), "npm install", "npx tsx src/index.ts"),
        (SEED_BUN, Kind::Bun, None, "bun install", "bun run src/index.ts"),
        (SEED_PYTHON, Kind::Python, Some(APT), "pip install -r requirements.txt", "python worker.py"),
        (SEED_RUST, Kind::Rust, Some(APT), "cargo build --release", "./target/release/my-worker"),
    ] {
        let read = read(manifest).unwrap();
        assert_eq!(read.name, text("my-worker", 1));
        assert_eq!(read.kind, at(kind, 3));
        assert_eq!((read.memory_mib.unwrap().value, read.cpus.unwrap().value), (2048, 2));
        let scripts = read.scripts.unwrap();
        assert_eq!(scripts.setup.map(|s| s.value).as_deref(), setup);
        assert_eq!(scripts.install.unwrap().value, install);
        assert_eq!(scripts.start.unwrap().value, start);
        let env: Vec<_> = read.env.iter().map(|(k, v)| (k.as_str(), v.value.as_str())).collect();
        assert_eq!(env, [("MY_API_KEY", "sk-abc123"), ("LOG_LEVEL", "debug")]);
        assert_eq!(read.warnings, Vec::<String>::new());
    }
}

#[test]
fn what_is_not_said_is_absent() {
    let read = read("name: w\nruntime:\nresources: {}\nenv: ~\n").unwrap();
    let expected = Manifest {
        name: text("w", 1),
        description: None,
        kind: None,
        package_manager: None,
        entry: None,
        base_image: None,
        memory_mib: None,
        cpus: None,
        disk_bytes: None,
        scripts: None,
        env: vec![],
        dependencies: vec![],
        warnings: vec![],
    };
    assert_eq!(read, expected);
    assert_eq!(self::read("name: w\nscripts: {}").unwrap().scripts, Some(Scripts::default()));
}

#[test]
fn every_field_is_read_with_its_line() {
    let manifest = read(
        "# mine\nname: w\ndescription: Resizes images.\nruntime:\n  kind: javascript\n  package_manager: pnpm\n  \
         entry: src/a b.ts\n  base_image: ghcr.io/me/base:1@sha256:00\nresources:\n  memory: 1GiB\n  cpus: \"3\"\n  \
         disk: 32GiB\nscripts:\n  setup: |\n    apt-get update\n    apt-get install -y git\n  install: \"\"\n  start: echo ${HOME} $$\n\
         env:\n  EMPTY: \"\"\n  NUMBER: \"5\"\n  lower: ${X}\ndependencies:\n  cache: ^1.2\n\
         iii: {a: 1}\ndeploy: x\nmanifest: 1\ntags: [a]\n",
    )
    .unwrap();
    assert_eq!(manifest.description, text("Resizes images.", 3));
    assert_eq!(manifest.kind, at(Kind::Javascript, 5));
    assert_eq!(manifest.package_manager, at(PackageManager::Pnpm, 6));
    assert_eq!(manifest.entry, text("src/a b.ts", 7));
    assert_eq!(manifest.base_image, text("ghcr.io/me/base:1@sha256:00", 8));
    assert_eq!((manifest.memory_mib, manifest.cpus), (at(1024, 10), at(3, 11)));
    assert_eq!(manifest.disk_bytes, at(32 << 30, 12));
    let scripts = manifest.scripts.unwrap();
    assert_eq!(scripts.setup, text("apt-get update\napt-get install -y git", 14));
    assert_eq!(scripts.install, text("", 17));
    assert_eq!(scripts.start, text("echo ${HOME} $$", 18), "what the shell expands is not expanded here");
    let env: Vec<_> = manifest.env.iter().map(|(k, v)| (k.as_str(), v.value.as_str(), v.line)).collect();
    assert_eq!(env, [("EMPTY", "", 20), ("NUMBER", "5", 21), ("lower", "${X}", 22)]);
    assert_eq!(manifest.dependencies, [("cache".to_owned(), text("^1.2", 24).unwrap())]);
    assert_eq!(manifest.warnings, Vec::<String>::new());
}

#[test]
fn older_names_are_understood_and_said() {
    let warns = |text: &str| read(text).unwrap().warnings;
    let old = "is the old name of";
    for (manifest, kind, entry, warnings) in [
        (
            "name: w\nruntime:\n  language: python\n",
            Some(Kind::Python),
            None,
            vec![format!("/p/iii.worker.yaml:3: `runtime.language` {old} `runtime.kind`: rename it")],
        ),
        (
            "name: w\nruntime: {kind: bun, language: rust}\n",
            Some(Kind::Bun),
            None,
            vec![format!(
                "/p/iii.worker.yaml:2: `runtime.language` {old} `runtime.kind` and has no effect beside it: rename it"
            )],
        ),
        (
            "name: w\nlanguage: rust\nentry: a.ts\nconfig: {A: 1}\n",
            Some(Kind::Rust),
            Some("a.ts"),
            vec![
                format!("/p/iii.worker.yaml:2: `language` {old} `runtime.kind`: rename it"),
                format!("/p/iii.worker.yaml:3: `entry` {old} `runtime.entry`: rename it"),
                "/p/iii.worker.yaml:4: `config` has no effect here; variables are written under `env`"
                    .to_owned(),
            ],
        ),
    ] {
        let read = read(manifest).unwrap();
        assert_eq!(read.kind.map(|k| k.value), kind, "{manifest}");
        assert_eq!(read.entry.map(|e| e.value).as_deref(), entry, "{manifest}");
        assert_eq!(read.warnings, warnings, "{manifest}");
    }
    let reserved = "name: w\nenv:\n  III_URL: x\n  III_ENGINE_URL: y\n  III_WORKER_NAME: z\n  III_ISOLATION: none\n  A: b\n";
    assert_eq!(read(reserved).unwrap().env.len(), 1);
    assert_eq!(warns(reserved).len(), 4);
    assert!(
        warns(reserved)[1].contains(":4: `III_ENGINE_URL` is set by iii itself"),
        "{:?}",
        warns(reserved)
    );
}

#[test]
fn every_mistake_is_told_at_its_place() {
    for (text, want) in [
        ("", "1:1: the manifest has no `name`"),
        ("runtime: {}\n", "1:1: the manifest has no `name`"),
        ("name:\n", "1:1: the manifest has no `name`"),
        ("name: 5\n", "1:7: `name`: expected text, found a number; if it is meant, quote it: \"5\""),
        ("name: ''\n", "1:7: `name` may not be empty or contain a NUL character"),
        (
            "name: a/b\n",
            "1:7: `a/b` cannot be a name: a worker's name is 1 to 63 of the characters a-z A-Z 0-9 . _ - and starts with a letter or a digit",
        ),
        ("- a\n", "1:1: expected a mapping at the top of the file, found a list"),
        ("name: w\nname: v\n", "2:1: the key `name` is there twice"),
        (
            "name: w\nruntme: {}\n",
            "2:1: unknown key `runtme` at the top of the file; did you mean `runtime`?",
        ),
        (
            "name: w\nkind: bun\n",
            "2:1: unknown key `kind` at the top of the file; `kind` belongs under `runtime:`",
        ),
        ("name: w\nworker: x\n", "2:1: unknown key `worker` at the top of the file"),
        ("name: w\nruntime: bun\n", "2:10: expected a mapping under `runtime`, found text"),
        ("name: w\nruntime: {knd: bun}\n", "2:11: unknown key `knd` under `runtime`; did you mean `kind`?"),
        (
            "name: w\nruntime:\n  kind: typescrip\n",
            "3:9: `runtime.kind` cannot be `typescrip`; did you mean `typescript`?",
        ),
        (
            "name: w\nruntime:\n  kind: cobol\n",
            "3:9: `runtime.kind` cannot be `cobol`; it is one of typescript, javascript, bun, python, rust",
        ),
        ("name: w\nruntime: {kind: [bun]}\n", "2:17: `runtime.kind`: expected text, found a list"),
        (
            "name: w\nruntime: {package_manager: pmpm}\n",
            "2:28: `runtime.package_manager` cannot be `pmpm`; did you mean `pnpm`?",
        ),
        (
            "name: w\nruntime: {entry: ../x}\n",
            "2:18: `../x` cannot be the entry: it leads out of the project",
        ),
        (
            "name: w\nruntime: {entry: /x}\n",
            "2:18: `/x` cannot be the entry: it is a path that starts at the project's folder, such as `src/index.ts`",
        ),
        ("name: w\nruntime: {base_image: 'a b'}\n", "2:23: `a b` is not an image reference: it contains ` `"),
        (
            "name: w\nresources: {memory: lots}\n",
            "2:21: `resources.memory`: expected a size such as `512MiB` or `2GiB`, found `lots`",
        ),
        (
            "name: w\nresources: {memory: 1}\n",
            "2:21: `resources.memory`: 1 MiB is outside of what is possible, 64 MiB to 1048576 MiB",
        ),
        (
            "name: w\nresources: {cpus: 0}\n",
            "2:19: `resources.cpus`: expected a whole number from 1 to 64, found `0`",
        ),
        (
            "name: w\nresources: {cpus: true}\n",
            "2:19: `resources.cpus`: expected a whole number, found a boolean",
        ),
        (
            "name: w\nresources: {disk: 16}\n",
            "2:19: `resources.disk`: expected a size with its unit, found `16`; did you mean `16GiB`?",
        ),
        (
            "name: w\nresources: {disk: 1MiB}\n",
            "2:19: `resources.disk`: 1 MiB is outside of what is possible, 64 MiB to 67108864 MiB",
        ),
        (
            "name: w\nresources: {disk: [1GiB]}\n",
            "2:19: `resources.disk`: expected a size such as `16GiB`, found a list",
        ),
        (
            "name: w\ndisk: 1GiB\n",
            "2:1: unknown key `disk` at the top of the file; `disk` belongs under `resources:`",
        ),
        ("name: w\nscripts: {start: [a]}\n", "2:18: `scripts.start`: expected text, found a list"),
        ("name: w\nscripts: {start: ' '}\n", "2:18: `scripts.start` is empty, so there would be no worker"),
        (
            "name: w\nscripts: {instal: x}\n",
            "2:11: unknown key `instal` under `scripts`; did you mean `install`?",
        ),
        ("name: w\nscripts: {setup: \"a\\0\"}\n", "2:18: `scripts.setup` contains a NUL character"),
        ("name: w\nenv: [A]\n", "2:6: `env`: expected a mapping, found a list"),
        (
            "name: w\nenv:\n  PORT: 8080\n",
            "3:9: `env.PORT`: expected text, found a number; if it is meant, quote it: \"8080\"",
        ),
        (
            "name: w\nenv:\n  DEBUG: true\n",
            "3:10: `env.DEBUG`: expected text, found a boolean; if it is meant, quote it: \"true\"",
        ),
        ("name: w\nenv:\n  A:\n", "3:4: `env.A`: expected text, found nothing; write \"\" for empty text"),
        (
            "name: w\nenv: {a=b: x}\n",
            "2:7: a key of `env` names an environment variable: it may not be empty or contain `=` or NUL",
        ),
        (
            "name: w\ndependencies: {cache: 1}\n",
            "2:23: `dependencies.cache`: expected text, found a number; if it is meant, quote it: \"1\"",
        ),
    ] {
        assert_eq!(fault(text), want, "{text}");
    }
}

#[test]
fn an_error_shows_the_line_with_a_caret() {
    insta::assert_snapshot!(read("name: w\nscripts:\n  strat: ./run\n").unwrap_err(), @r"
    /p/iii.worker.yaml:3:3: unknown key `strat` under `scripts`; did you mean `start`?
      |
    3 |   strat: ./run
      |   ^^^^^
    ");
}

#[test]
fn a_manifest_that_is_too_long_or_no_file_is_refused() {
    assert!(fault(&format!("name: w\n#{}", "x".repeat(MAX_MANIFEST_BYTES))).contains("limit of 65536 bytes"));
    let dir = tempfile::tempdir().unwrap();
    assert!(super::read(dir.path(), false).unwrap().is_none());
    let path = dir.path().join(MANIFEST_FILE);
    std::fs::write(&path, format!("name: w\n#{}", "é".repeat(MAX_MANIFEST_BYTES))).unwrap();
    let error = super::read(dir.path(), false).unwrap_err().to_string();
    assert!(error.contains("limit of 65536 bytes"), "{error}");
    std::fs::write(&path, b"name: \xff\n").unwrap();
    let error = super::read(dir.path(), false).unwrap_err().to_string();
    assert!(error.contains("invalid utf-8"), "{error}");
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = super::read(dir.path(), false).unwrap_err().to_string();
    assert!(error.ends_with("iii.worker.yaml: it is not a file"), "{error}");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    let error = super::read(dir.path(), false).unwrap_err().to_string();
    assert!(error.contains("No such file"), "a link that leads nowhere is told: {error}");
}
