use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::project::detect::{PackageJson, Pyproject};
use crate::project::manifest;

fn files(names: &[&'static str]) -> Evidence {
    Evidence { files: names.iter().copied().collect(), ..Evidence::default() }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn package(scripts: &[&str], others: &[&'static str]) -> Evidence {
    let mut evidence = files(others);
    evidence.files.insert("package.json");
    Evidence { package_json: Some(Ok(PackageJson { scripts: set(scripts) })), ..evidence }
}

fn pyproject(project: Pyproject, others: &[&'static str]) -> Evidence {
    let mut evidence = files(others);
    evidence.files.insert("pyproject.toml");
    Evidence { pyproject: Some(Ok(project)), ..evidence }
}

fn planned(manifest: Option<&str>, evidence: &Evidence) -> Result<Plan, ProjectError> {
    let folder = Path::new("/srv/my-project");
    let manifest = manifest.map(|text| manifest::parse(&format!("name: w\n{text}"), folder, false).unwrap());
    plan(Inputs { folder, name: None, manifest: manifest.as_ref(), evidence })
}

/// Kind, image, setup, install and start, each with its origin.
fn commands(manifest: Option<&str>, evidence: &Evidence) -> [String; 5] {
    let plan = planned(manifest, evidence).unwrap_or_else(|e| panic!("{manifest:?}: {e}"));
    let show = |value: &str, from: &Origin| format!("{value} | {from}");
    let none = |script: &Sourced<Option<String>>| show(script.value.as_deref().unwrap_or("-"), &script.from);
    [
        show(plan.kind.value.name(), &plan.kind.from),
        show(&plan.base_image.value, &plan.base_image.from),
        none(&plan.setup),
        none(&plan.install),
        show(&plan.start.value, &plan.start.from),
    ]
}

#[test]
fn commands_are_inferred_from_the_manifest_alone() {
    let node = "iiidev/node:latest";
    for (text, kind, image, setup, install, start) in [
        // Both examples of the documentation.
        (
            "runtime: {kind: typescript, package_manager: npm, entry: src/index.ts}",
            "typescript",
            node,
            "-",
            "npm install",
            "npx tsx src/index.ts",
        ),
        (
            "runtime: {kind: bun, entry: src/index.ts}",
            "bun",
            "oven/bun:latest",
            "-",
            "bun install",
            "bun run src/index.ts",
        ),
        (
            "runtime: {kind: javascript, entry: \"my file's.js\"}",
            "javascript",
            node,
            "-",
            "npm install",
            r"npx tsx 'my file'\''s.js'",
        ),
        (
            "runtime: {kind: typescript, package_manager: pnpm, entry: a.ts}",
            "typescript",
            node,
            "command -v pnpm >/dev/null 2>&1 || npm install -g pnpm",
            "pnpm install",
            "pnpm exec tsx a.ts",
        ),
        (
            "runtime: {package_manager: yarn, entry: a.ts}",
            "typescript",
            node,
            "command -v yarn >/dev/null 2>&1 || npm install -g yarn",
            "yarn install",
            "yarn exec tsx a.ts",
        ),
        (
            "runtime: {package_manager: bun, entry: a.ts}",
            "typescript",
            node,
            "command -v bun >/dev/null 2>&1 || npm install -g bun",
            "bun install",
            "bun run a.ts",
        ),
        (
            "runtime: {kind: python, entry: worker.py}",
            "python",
            "iiidev/python:latest",
            "-",
            "python3 -m venv .venv",
            ".venv/bin/python worker.py",
        ),
        (
            "runtime: {kind: python, entry: my_worker.serve}",
            "python",
            "iiidev/python:latest",
            "-",
            "python3 -m venv .venv",
            ".venv/bin/python -m my_worker.serve",
        ),
        (
            "runtime: {kind: rust}",
            "rust",
            "library/rust:slim-bookworm",
            "-",
            "cargo build --release",
            "cargo run --release",
        ),
        (
            "runtime: {kind: bun, base_image: oven/bun:1}\nscripts: {install: bun install, start: bun run x}",
            "bun",
            "oven/bun:1",
            "-",
            "bun install",
            "bun run x",
        ),
        ("scripts: {start: ./run, install: '', setup: s}", "typescript", node, "s", "-", "./run"),
    ] {
        let found = commands(Some(text), &files(&[]));
        let value = |n: usize| found[n].rsplit_once(" | ").unwrap().0.to_owned();
        let expected = [kind, image, setup, install, start].map(str::to_owned);
        assert_eq!([0, 1, 2, 3, 4].map(value), expected, "{text}");
    }
}

#[test]
fn an_image_of_ones_own_gets_the_tools_it_may_lack() {
    for (text, needles) in [
        ("runtime: {kind: typescript, entry: a, base_image: debian}", &["command -v node", "nodejs"][..]),
        (
            "runtime: {kind: typescript, entry: a, base_image: debian, package_manager: pnpm}",
            &["{ command -v node", "; } && { command -v pnpm"],
        ),
        ("runtime: {kind: python, entry: a, base_image: debian}", &["import ensurepip", "python3-venv"]),
        ("runtime: {kind: rust, base_image: debian}", &["command -v cargo", "rustup"]),
    ] {
        let [.., setup, install, _] = commands(Some(text), &files(&[]));
        for needle in needles {
            assert!(setup.contains(needle), "{text}: {setup}");
        }
        let command = setup.split(" | default").next().unwrap();
        let checked = std::process::Command::new("sh").args(["-n", "-c", command]).status().unwrap();
        assert!(checked.success(), "{command}");
        assert!(
            !text.contains("rust") || install.starts_with("[ ! -f \"$HOME/.cargo/env\" ] || . "),
            "{install}"
        );
    }
}

#[test]
fn commands_are_inferred_from_the_files_alone() {
    let build = || Pyproject { has_build_system: true, has_project: true, ..Pyproject::default() };
    let project = || Pyproject { has_project: true, ..Pyproject::default() };
    let serve = || Pyproject { scripts: set(&["serve"]), ..build() };
    let with_package =
        |path: &str| Evidence { packages: vec![path.to_owned()], ..files(&["requirements.txt"]) };
    let venv = "python3 -m venv .venv && .venv/bin/pip install";
    for (evidence, install, start) in [
        (
            package(&["dev", "start"], &[]),
            "npm install | default for kind typescript".to_owned(),
            "npm run dev | package.json",
        ),
        (
            package(&["start", "test"], &["package-lock.json"]),
            "npm install | package-lock.json".to_owned(),
            "npm run start | package.json",
        ),
        (package(&["dev"], &["bun.lock"]), "bun install | bun.lock".to_owned(), "bun run dev | package.json"),
        (
            package(&["dev"], &["pnpm-lock.yaml"]),
            "pnpm install | pnpm-lock.yaml".to_owned(),
            "pnpm run dev | package.json",
        ),
        (
            package(&["dev"], &["yarn.lock"]),
            "yarn install | yarn.lock".to_owned(),
            "yarn run dev | package.json",
        ),
        (
            package(&[], &["index.ts", "src/index.ts"]),
            "npm install | default for kind typescript".to_owned(),
            "npx tsx src/index.ts | src/index.ts",
        ),
        (
            files(&["requirements.txt", "worker.py"]),
            format!("{venv} -r requirements.txt | requirements.txt"),
            ".venv/bin/python worker.py | worker.py",
        ),
        (
            files(&["requirements.txt", "app.py", "main.py"]),
            format!("{venv} -r requirements.txt | requirements.txt"),
            ".venv/bin/python main.py | main.py",
        ),
        (
            files(&["requirements.txt", "__main__.py"]),
            format!("{venv} -r requirements.txt | requirements.txt"),
            ".venv/bin/python __main__.py | __main__.py",
        ),
        (
            with_package("src/job"),
            format!("{venv} -r requirements.txt | requirements.txt"),
            ".venv/bin/python -m job | src/job/__main__.py",
        ),
        (
            files(&["requirements.txt", "setup.py", "app.py"]),
            format!("{venv} -r requirements.txt -e . | requirements.txt, setup.py"),
            ".venv/bin/python app.py | app.py",
        ),
        (
            pyproject(project(), &["main.py"]),
            format!("{venv} -e . | pyproject.toml"),
            ".venv/bin/python main.py | main.py",
        ),
        (
            pyproject(project(), &["main.py", "requirements.txt"]),
            format!("{venv} -r requirements.txt | requirements.txt"),
            ".venv/bin/python main.py | main.py",
        ),
        (
            pyproject(build(), &["main.py", "requirements.txt"]),
            format!("{venv} -r requirements.txt -e . | requirements.txt, pyproject.toml"),
            ".venv/bin/python main.py | main.py",
        ),
        (
            pyproject(serve(), &[]),
            format!("{venv} -e . | pyproject.toml"),
            ".venv/bin/serve | pyproject.toml",
        ),
        (
            pyproject(Pyproject::default(), &["app.py"]),
            "python3 -m venv .venv | default for kind python".to_owned(),
            ".venv/bin/python app.py | app.py",
        ),
        (
            files(&["Cargo.toml"]),
            "cargo build --release | default for kind rust".to_owned(),
            "cargo run --release | default for kind rust",
        ),
    ] {
        let [.., found_install, found_start] = commands(None, &evidence);
        assert_eq!((found_install, found_start.as_str()), (install, start), "{evidence:?}");
    }
}

#[test]
fn a_written_command_and_an_inferred_one_use_the_same_python() {
    let requirements = files(&["requirements.txt", "worker.py"]);
    let pip = "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -r requirements.txt";
    for (scripts, install, start) in [
        ("{start: python worker.py}", pip, "python worker.py"),
        ("{install: pip install x}", "pip install x", "python3 worker.py"),
        (
            "{setup: x}",
            "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt",
            ".venv/bin/python worker.py",
        ),
    ] {
        let plan = planned(Some(&format!("scripts: {scripts}")), &requirements).unwrap();
        let found = (plan.install.value.unwrap(), plan.start.value);
        assert_eq!(found, (install.to_owned(), start.to_owned()), "{scripts}");
    }
    let plan = planned(Some("runtime: {kind: python}\nscripts: {start: python a.py}"), &files(&[])).unwrap();
    assert_eq!(plan.install.value, None);
}

#[test]
fn what_cannot_be_inferred_says_what_to_write() {
    let told = |manifest, evidence: &Evidence| {
        let error = planned(manifest, evidence).unwrap_err();
        (error.to_string(), error.hint().unwrap_or_default())
    };
    let (message, hint) = told(None, &files(&["requirements.txt"]));
    assert!(
        message.ends_with(
            "there is no main.py, app.py, worker.py, __main__.py and no package with a `__main__.py`"
        ),
        "{message}"
    );
    assert!(hint.contains("entry: worker.py") && hint.contains("`start:` under `scripts:`"), "{hint}");
    let several = ["a", "b"].map(str::to_owned).into();
    let (message, _) = told(None, &Evidence { packages: several, ..files(&["requirements.txt"]) });
    assert!(message.ends_with("each of a, b has a `__main__.py`"), "{message}");
    let (message, hint) = told(None, &package(&["test"], &[]));
    assert!(
        message.contains("no script `dev` or `start`") && hint.contains("src/index.ts"),
        "{message} {hint}"
    );
    let (message, hint) = told(None, &files(&["main.py"]));
    assert!(
        message.contains("it has no iii.worker.yaml, package.json") && hint.contains("runtime:"),
        "{message} {hint}"
    );

    let broken = Evidence { package_json: Some(Err("line 1".to_owned())), ..files(&["package.json"]) };
    assert_eq!(told(None, &broken).0, "/srv/my-project/package.json cannot be understood: line 1");
    let start = Some("scripts: {start: ./run}");
    assert!(planned(start, &broken).is_ok(), "a file that is not needed may be broken");
}

#[test]
fn names_kinds_and_resources_have_their_order() {
    let node = package(&["dev"], &[]);
    let folder = Path::new("/srv/my project");
    let error = plan(Inputs { folder, name: None, manifest: None, evidence: &node }).unwrap_err();
    assert!(error.to_string().contains("`my project` cannot be a name"), "{error}");
    let named = plan(Inputs { folder, name: Some("x"), manifest: None, evidence: &node }).unwrap();
    assert_eq!(named.name, Sourced::new("x".to_owned(), Origin::Flag));
    let plan = planned(None, &node).unwrap();
    assert_eq!(plan.name, Sourced::new("my-project".to_owned(), Origin::FolderName));
    assert_eq!(plan.memory_mib, Sourced::new(2048, Origin::Default));

    let text = "description: d\nresources: {memory: 512, cpus: 1, disk: 1GiB}\nenv: {A: b}";
    let plan = planned(Some(text), &node).unwrap();
    assert_eq!(plan.name, Sourced::new("w".to_owned(), Origin::Manifest(1)));
    assert_eq!(plan.memory_mib, Sourced::new(512, Origin::Manifest(3)));
    assert_eq!(plan.cpus, Sourced::new(1, Origin::Manifest(3)));
    assert_eq!(plan.disk_bytes, Sourced::new(1 << 30, Origin::Manifest(3)));
    assert_eq!(plan.env[0].from, Origin::Manifest(4));

    // Without `kind` the files say it, and without files it is TypeScript.
    let python = files(&["requirements.txt", "main.py"]);
    assert_eq!(planned(Some(""), &python).unwrap().kind.to_string_pair(), "python requirements.txt");
    let scripts = Some("scripts: {start: x}");
    assert_eq!(planned(scripts, &files(&[])).unwrap().kind.to_string_pair(), "typescript default");
    // What nothing is known of gets no tools, whatever its image, unless something that needs them is inferred.
    let unknown = |scripts: &str| {
        let text = format!("runtime: {{base_image: gcc, entry: a.ts}}\nscripts: {{{scripts}}}");
        let plan = planned(Some(&text), &files(&[])).unwrap();
        (plan.known_kind(), plan.setup.value.is_some())
    };
    assert_eq!(unknown("install: make, start: ./app"), (None, false));
    assert_eq!(unknown("install: make"), (None, true));
    assert_eq!(planned(Some(""), &python).unwrap().known_kind(), Some(Kind::Python));
    let both = planned(Some("runtime: {kind: python}\n"), &package(&[], &["main.py"])).unwrap();
    assert_eq!((both.kind.to_string_pair().as_str(), both.notes.len()), ("python manifest line 2", 0));
}

#[test]
fn what_has_no_effect_or_another_one_is_said() {
    let said = |text: &str, evidence: &Evidence| {
        let plan = planned(Some(text), evidence).unwrap();
        (plan.warnings.join("; "), plan.notes.join("; "))
    };
    let (warned, _) = said("runtime: {kind: python, package_manager: npm, entry: a.py}", &files(&[]));
    assert_eq!(
        warned,
        "`runtime.package_manager` (manifest line 2): npm is not for kind python; pip is used"
    );
    let (warned, _) = said("runtime: {kind: python, package_manager: pip, entry: a.py}", &files(&[]));
    assert_eq!(warned, "");
    let (warned, _) = said("runtime: {kind: rust, entry: a.rs}", &files(&[]));
    assert!(warned.contains("has no effect with kind rust"), "{warned}");
    let (_, noted) = said("scripts: {start: x}", &files(&[]));
    assert!(noted.contains("write `install: \"\"`"), "{noted}");
    let (_, noted) = said("runtime: {entry: a}\ndependencies: {db: '1'}", &files(&[]));
    assert!(noted.contains("`dependencies` are other workers"), "{noted}");
    let (_, noted) = said("runtime: {entry: a}", &package(&[], &["yarn.lock", "package-lock.json"]));
    assert!(
        noted.contains("package-lock.json is there too: `yarn.lock` decides that yarn is used"),
        "{noted}"
    );
}

proptest! {
    #[test]
    fn any_evidence_gives_a_plan_or_says_what_is_missing(
        names in proptest::collection::btree_set(proptest::sample::select(vec![
            "package.json", "bun.lock", "yarn.lock", "pyproject.toml", "requirements.txt", "setup.py", "Cargo.toml",
            "main.py", "src/index.ts",
        ]), 0..6),
        kind in proptest::option::of(proptest::sample::select(Kind::ALL)),
        entry in proptest::option::of("[a-z '$;]{1,8}"),
        own_image in any::<bool>(),
    ) {
        let evidence = Evidence { files: names.into_iter().collect(), ..Evidence::default() };
        let mut text = "runtime:\n  package_manager: npm\n".to_owned();
        if let Some(kind) = kind { text += &format!("  kind: {kind}\n"); }
        if let Some(entry) = &entry { text += &format!("  entry: \"{entry}\"\n"); }
        if own_image { text += "  base_image: debian\n"; }
        match planned(Some(&text), &evidence) {
            Ok(plan) => {
                prop_assert!(plan.package_manager.value.fits(plan.kind.value));
                prop_assert!(!plan.start.value.is_empty());
            }
            Err(error) => prop_assert!(entry.is_none() && error.hint().is_some(), "{error}"),
        }
    }

    #[test]
    fn an_entry_is_one_word_of_the_shell(entry in "[a-z '\"$;&|()*?\\\\~!#]{1,12}") {
        let quoted = super::super::commands::quoted(&entry);
        let output = std::process::Command::new("sh").arg("-c").arg(format!("printf '<%s>' {quoted}")).output().unwrap();
        prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("<{entry}>"));
    }
}

impl Sourced<Kind> {
    fn to_string_pair(&self) -> String {
        format!("{} {}", self.value, self.from)
    }
}
