use super::*;

fn evidence(files: &[&'static str]) -> Evidence {
    Evidence { files: files.iter().copied().collect(), ..Evidence::default() }
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

#[test]
fn the_kind_follows_from_the_files() {
    for (files, expected) in [
        (&["package.json"][..], Some((Kind::Typescript, "package.json", 0))),
        (&["package.json", "yarn.lock"], Some((Kind::Typescript, "package.json", 0))),
        (&["package.json", "bun.lock"], Some((Kind::Bun, "package.json", 0))),
        (&["package.json", "bun.lockb", "package-lock.json"], Some((Kind::Bun, "package.json", 0))),
        (&["pyproject.toml"], Some((Kind::Python, "pyproject.toml", 0))),
        (&["requirements.txt"], Some((Kind::Python, "requirements.txt", 0))),
        (&["pyproject.toml", "requirements.txt"], Some((Kind::Python, "pyproject.toml", 0))),
        (&["Cargo.toml"], Some((Kind::Rust, "Cargo.toml", 0))),
        (&["Cargo.toml", "pyproject.toml"], Some((Kind::Rust, "Cargo.toml", 1))),
        (&["package.json", "Cargo.toml", "requirements.txt"], Some((Kind::Typescript, "package.json", 1))),
        (&["bun.lock"], None),
        (&["main.py"], None),
        (&[], None),
    ] {
        let found = detect(&evidence(files));
        let found = found.as_ref().map(|found| (found.kind, found.by, found.notes.len()));
        assert_eq!(found, expected, "{files:?}");
    }
    let both = detect(&evidence(&["package.json", "Cargo.toml", "requirements.txt"])).unwrap();
    assert!(
        both.notes[0].starts_with("the project also has Cargo.toml and requirements.txt: `package.json`")
    );
}

#[test]
fn lock_files_tell_the_package_manager() {
    for (files, expected) in [
        (&["bun.lock"][..], Some(("bun.lock", PackageManager::Bun))),
        (&["bun.lockb"], Some(("bun.lockb", PackageManager::Bun))),
        (&["pnpm-lock.yaml", "package-lock.json"], Some(("pnpm-lock.yaml", PackageManager::Pnpm))),
        (&["yarn.lock"], Some(("yarn.lock", PackageManager::Yarn))),
        (&["package-lock.json"], Some(("package-lock.json", PackageManager::Npm))),
        (&["npm-shrinkwrap.json"], Some(("npm-shrinkwrap.json", PackageManager::Npm))),
        (&["package.json"], None),
    ] {
        assert_eq!(lock(&evidence(files)), expected, "{files:?}");
    }
    let several = evidence(&["yarn.lock", "package-lock.json", "npm-shrinkwrap.json"]);
    assert_eq!(stray_locks(&several, PackageManager::Npm), ["yarn.lock"]);
}

#[test]
fn a_folder_is_read_for_what_matters_only() {
    let dir = folder(&[
        ("package.json", "\u{feff}{\"name\": 5, \"scripts\": {\"dev\": \"x\", \"odd\": 7}, \"type\": []}"),
        ("pyproject.toml", "[build-system]\n[project]\nname='x'\n[project.scripts]\nserve='x:y'\n"),
        ("src/app/__main__.py", ""),
        ("tool/__main__.py", ""),
        (".hidden/__main__.py", ""),
        ("dist/__main__.py", ""),
        ("not-a-module/__main__.py", ""),
        ("src/index.ts", ""),
        ("notes.txt", ""),
    ]);
    std::fs::create_dir(dir.path().join("Cargo.toml")).unwrap();
    let found = look(dir.path()).unwrap();
    assert_eq!(
        found.files.iter().copied().collect::<Vec<_>>(),
        ["package.json", "pyproject.toml", "src/index.ts"]
    );
    let scripts = found.package_json.unwrap().unwrap().scripts;
    assert_eq!(scripts, ["dev", "odd"].map(str::to_owned).into());
    let scripts = ["serve".to_owned()].into();
    let expected = Pyproject { has_build_system: true, has_project: true, scripts };
    assert_eq!(found.pyproject.unwrap().unwrap(), expected);
    assert_eq!(found.packages, ["src/app", "tool"]);
}

#[test]
fn what_cannot_be_understood_is_kept_until_it_is_needed() {
    let dir = folder(&[("package.json", "{\n  oops"), ("pyproject.toml", "[project]\nname = \n")]);
    let found = look(dir.path()).unwrap();
    assert!(found.package_json.unwrap().unwrap_err().contains("line 2"));
    assert!(found.pyproject.unwrap().unwrap_err().starts_with("line 2: "));
    for odd in ["{}", "{\"scripts\": null}", "{\"scripts\": [1]}"] {
        assert_eq!(package_json(odd), Ok(PackageJson::default()), "{odd}");
    }
}

#[test]
fn a_folder_that_is_none_is_told() {
    let dir = folder(&[("file", "")]);
    let told = |path: &Path| look(path).unwrap_err().to_string();
    let missing = dir.path().join("missing");
    assert_eq!(told(&missing), format!("there is no folder {}", missing.display()));
    let file = dir.path().join("file");
    assert_eq!(told(&file), format!("{} is not a folder", file.display()));
    assert_eq!(told(&file.join("x")), format!("there is no folder {}", file.join("x").display()));
    let long = folder(&[("package.json", &" ".repeat(2 << 20))]);
    assert!(told(long.path()).ends_with("package.json has more than the limit of 1048576 bytes"));
}

#[test]
fn module_names_are_words_with_dots() {
    for (text, expected) in
        [("a", true), ("a.b_1", true), ("a-b", false), ("a.", false), ("", false), ("1a", false)]
    {
        assert_eq!(is_module(text), expected, "{text}");
    }
}
