//! Local projects as people have them: real base images, real package managers, the real disk. All that they
//! install comes along with them, so nothing reaches out of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_protocol::api::Phase;

use crate::guest::{load, zero_head};
use crate::scenarios::{Bed, Daemon, Local};

mod network;

/// A project without a word about its scripts, and with one processor: two slow the emulated host.
const ONE_CPU: &str = "name: app\nresources: {cpus: 1}\n";

/// A project that was added to a running daemon.
struct Added {
    bed: Bed,
    folder: PathBuf,
    _daemon: Daemon,
}

impl Added {
    /// Adds what `files` make, with the registry of all its base images on this machine.
    fn new(base: &str, files: &[(&str, &str)], more: impl FnOnce(&Path)) -> Added {
        let bed = Bed::new();
        load(&bed, base);
        bed.write_config(&format!(
            "registries: {{docker.io: {{mirror: '{}'}}}}\nworkers: []\n",
            bed.registry.address()
        ));
        let folder = bed.project().join("app");
        write(&folder, files);
        more(&folder);
        let daemon = bed.daemon();
        bed.ok(&["worker", "add", "./app"]);
        bed.wait_phase("app", Phase::Running);
        Added { bed, folder, _daemon: daemon }
    }

    fn write(&self, files: &[(&str, &str)]) {
        write(&self.folder, files);
    }

    /// Starts it again; its output since then holds `said`. Which scripts ran, and why.
    fn again(&self, said: &str) -> Vec<String> {
        let before = self.ran().len();
        let lines = self.output().lines().count();
        self.bed.ok(&["worker", "restart", "app"]);
        self.bed.until(&format!("`{said}` from the new machine"), || {
            self.output().lines().skip(lines).any(|line| line == said)
        });
        self.ran().split_off(before)
    }

    fn output(&self) -> String {
        self.bed.iii(&["worker", "logs", "app"]).text()
    }

    fn ran(&self) -> Vec<String> {
        let events = self.bed.ok(&["worker", "logs", "--events", "app"]);
        let ran = events.lines().filter_map(|line| {
            let at = line.find("setup runs (").or_else(|| line.find("install runs ("))?;
            Some(line[at..].to_owned())
        });
        ran.collect()
    }
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// `greeter` as a wheel (a zip archive with three files about itself) in `vendor`.
fn wheel(folder: &Path, version: &str) {
    let source = tempfile::tempdir().unwrap();
    let about = format!("greeter-{version}.dist-info");
    let metadata = format!("Metadata-Version: 2.1\nName: greeter\nVersion: {version}\n");
    let record = format!("greeter.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n");
    write(
        source.path(),
        &[
            ("greeter.py", &format!("HELLO = 'greeter {version}'\n")),
            (&format!("{about}/METADATA"), &metadata),
            (
                &format!("{about}/WHEEL"),
                "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            ),
            (&format!("{about}/RECORD"), &record),
        ],
    );
    let vendor = folder.join("vendor");
    fs::create_dir_all(&vendor).unwrap();
    let wheel = vendor.join(format!("greeter-{version}-py3-none-any.whl"));
    let mut zip = Command::new("python3");
    zip.args(["-m", "zipfile", "-c"]).arg(wheel).args(["greeter.py", about.as_str()]);
    assert!(zip.current_dir(source.path()).status().unwrap().success());
}

#[test]
fn a_python_project_runs_with_what_its_requirements_name() {
    let main = "import greeter, signal, sys\nprint('running with', greeter.HELLO, 'in', sys.prefix, flush=True)\n\
                signal.pause()\n";
    let requirements = |version| format!("--no-index\n--find-links vendor\ngreeter=={version}\n");
    let first = requirements("1.0");
    let files = [("iii.worker.yaml", ONE_CPU), ("main.py", main), ("requirements.txt", first.as_str())];
    let app = Added::new("iiidev/python", &files, |folder| {
        wheel(folder, "1.0");
        wheel(folder, "2.0");
    });
    app.bed.wait_log("app", "running with greeter 1.0 in /workspace/.venv\n");
    let ran = app.ran();
    assert!(ran.len() == 1 && ran[0].starts_with("install runs (it has not finished yet)"), "{ran:?}");
    assert_eq!(app.again("running with greeter 1.0 in /workspace/.venv"), Vec::<String>::new());
    app.write(&[("requirements.txt", &requirements("2.0"))]);
    let ran = app.again("running with greeter 2.0 in /workspace/.venv");
    assert!(ran.len() == 1 && ran[0].starts_with("install runs (requirements.txt changed)"), "{ran:?}");

    // A start of one's own knows nothing of a virtual environment; Debian's Python minds packages that others bring.
    app.write(&[("iii.worker.yaml", &format!("{ONE_CPU}scripts: {{start: exec python3 main.py}}\n"))]);
    let ran = app.again("running with greeter 2.0 in /usr");
    assert!(ran.len() == 1 && ran[0].starts_with("install runs (the script changed)"), "{ran:?}");
}

/// package.json and package-lock.json of `app`, which depends on these folders of `vendor`.
fn node_package(dependencies: &[&str]) -> [(&'static str, String); 2] {
    let link = |name: &&str| format!("\"{name}\": \"file:vendor/{name}\"");
    let links: Vec<String> = dependencies.iter().map(link).collect();
    let links = links.join(", ");
    let locked = |name: &&str| {
        format!(
            ", \"node_modules/{name}\": {{\"resolved\": \"vendor/{name}\", \"link\": true}}, \
             \"vendor/{name}\": {{\"version\": \"1.0.0\"}}"
        )
    };
    let locked: String = dependencies.iter().map(locked).collect();
    let head = "\"name\": \"app\", \"version\": \"1.0.0\"";
    [
        (
            "package.json",
            format!(
                "{{{head}, \"scripts\": {{\"start\": \"node index.js\"}}, \"dependencies\": {{{links}}}}}"
            ),
        ),
        (
            "package-lock.json",
            format!(
                "{{{head}, \"lockfileVersion\": 3, \"requires\": true, \"packages\": {{\"\": {{{head}, \
                 \"dependencies\": {{{links}}}}}{locked}}}}}"
            ),
        ),
    ]
}

#[test]
fn a_node_project_runs_with_what_its_package_json_names() {
    let index = "const found = ['first', 'second'].map((name) => {\n  try { return require(name); }\n  \
                 catch (error) { return error.code; }\n});\nconsole.log('running with', found.join(' and '));\n\
                 setInterval(() => {}, 1000);\n";
    let [package, lock] = node_package(&["first"]);
    let files = [
        ("iii.worker.yaml", ONE_CPU),
        ("index.js", index),
        (package.0, package.1.as_str()),
        (lock.0, lock.1.as_str()),
        ("vendor/first/package.json", "{\"name\": \"first\", \"version\": \"1.0.0\"}"),
        ("vendor/first/index.js", "module.exports = 'the first';\n"),
        ("vendor/second/package.json", "{\"name\": \"second\", \"version\": \"1.0.0\"}"),
        ("vendor/second/index.js", "module.exports = 'the second';\n"),
    ];
    let app = Added::new("iiidev/node", &files, |_| {});
    let first = "running with the first and MODULE_NOT_FOUND";
    app.bed.wait_log("app", &format!("{first}\n"));
    let ran = app.ran();
    assert!(ran.len() == 1 && ran[0].ends_with(": `npm install`"), "{ran:?}");
    assert_eq!(app.again(first), Vec::<String>::new());
    let [package, lock] = node_package(&["first", "second"]);
    app.write(&[(package.0, &package.1), (lock.0, &lock.1)]);
    let ran = app.again("running with the first and the second");
    let why = "install runs (package-lock.json changed, package.json changed)";
    assert!(ran.len() == 1 && ran[0].starts_with(why), "{ran:?}");
}

#[test]
fn a_c_project_is_compiled_in_its_machine_and_again_when_a_source_changes() {
    let manifest = "name: app\nresources: {cpus: 1}\nruntime: {base_image: gcc}\nscripts:\n  install: |\n    \
                    mkdir -p build\n    gcc -O1 -c -o build/greet.o vendor/greet/greet.c && ar rcs \
                    build/libgreet.a build/greet.o &&\n    gcc -O1 -Ivendor/greet -o build/app main.c -Lbuild -lgreet\n  \
                    start: exec build/app\n";
    let main = "#include <stdio.h>\n#include <unistd.h>\n#include \"greet.h\"\nint main(void) {\n    \
                printf(\"running with %s\\n\", greet());\n    fflush(stdout);\n    pause();\n}\n";
    let library = |text| format!("#include \"greet.h\"\nconst char *greet(void) {{ return \"{text}\"; }}\n");
    let old = library("the old library");
    let files = [
        ("iii.worker.yaml", manifest),
        ("main.c", main),
        ("vendor/greet/greet.h", "const char *greet(void);\n"),
        ("vendor/greet/greet.c", old.as_str()),
    ];
    let app = Added::new("library/gcc", &files, |_| {});
    app.bed.wait_log("app", "running with the old library\n");
    assert_eq!(app.ran().len(), 1, "no tools of another kind are set up: {:?}", app.ran());
    assert_eq!(app.again("running with the old library"), Vec::<String>::new());
    app.write(&[("vendor/greet/greet.c", &library("the new library"))]);
    let ran = app.again("running with the new library");
    assert!(ran.len() == 1 && ran[0].starts_with("install runs (vendor/greet/greet.c changed)"), "{ran:?}");
}

const MIB: u64 = 1 << 20;

#[test]
fn a_disk_that_is_too_small_says_so_and_a_larger_one_takes_the_project() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    let sized = |mib: u32| local.configure_with(&format!("    resources: {{disk: {mib}MiB}}\n"));
    let failed = |what: &str| {
        let cause = local.bed.wait_phase("app", Phase::Failed).cause.unwrap();
        assert!(cause.message.starts_with(what), "{cause:?}");
        assert!(cause.message.contains("No space left on device"), "{cause:?}");
        assert!(cause.hint.as_ref().is_some_and(|hint| hint.starts_with("raise `disk`")), "{cause:?}");
    };
    let big = local.folder().join("big");
    fs::File::create(&big).unwrap().set_len(60 * MIB).unwrap();
    sized(64);
    let _daemon = local.bed.daemon();
    failed("copy");

    // What was copied by half is not in the way of what comes after.
    fs::remove_file(big).unwrap();
    local.manifest("  setup: ''\n  install: dd if=/dev/zero of=filled bs=1M count=60\n");
    assert_eq!(local.bed.iii(&["worker", "start", "app"]).code, Some(1));
    failed("install");

    sized(160);
    local.bed.wait_phase("app", Phase::Running);
    local.bed.wait_log("app", "serving hello");
    assert_eq!(local.sh("stat -c %s filled"), format!("{}\n", 60 * MIB));
}

#[test]
fn a_damaged_disk_says_what_mends_it_and_both_ways_do() {
    let local = Local::new("  setup: ''\n  install: echo installed >> ran\n");
    local.configure_with("    resources: {disk: 512MiB}\n    restart: {delay: 10ms}\n");
    let daemon = local.bed.daemon();
    local.bed.wait_phase("app", Phase::Running);
    local.bed.ok(&["worker", "stop", "app"]);
    let managed = local.bed.home().join("managed/app");
    let mut files = fs::read_dir(managed).unwrap().flatten().map(|entry| entry.path());
    let disk = files.find(|path| path.extension().is_some_and(|e| e == "ext4")).unwrap();
    zero_head(&disk);
    assert_eq!(local.bed.iii(&["worker", "start", "app"]).code, Some(1));
    let cause = local.bed.wait_phase("app", Phase::Failed).cause.unwrap();
    assert!(cause.message.contains("scratch disk"), "{cause:?}");
    let (mend, folder) = (format!("e2fsck -fy {}", disk.display()), local.folder().display().to_string());
    let hint = cause.hint.unwrap();
    assert!(hint.contains(&format!("`{mend}`")), "{hint}");
    assert!(hint.contains(&format!("`iii worker add {folder} --name app --force`")), "{hint}");

    let mended = Command::new("sh").args(["-c", &mend]).output().unwrap();
    assert!(mended.status.code().is_some_and(|code| code & !1 == 0), "{mended:?}");
    local.bed.ok(&["worker", "start", "app"]);
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat ran"), "installed\n", "all that was on it is there");

    local.bed.ok(&["worker", "stop", "app"]);
    zero_head(&disk);
    local.bed.ok(&["worker", "add", &folder, "--name", "app", "--force"]);
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat ran"), "installed\n");
    drop(daemon);
}
