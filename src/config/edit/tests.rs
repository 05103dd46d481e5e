use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;
use crate::config::schema::Source;

fn entry() -> NewEntry {
    NewEntry {
        name: "new".to_owned(),
        image: Some("docker.io/library/x:1".to_owned()),
        worker_path: None,
        exclude: vec![],
        resources: ResourceHints::default(),
        config: vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "a #b".to_owned())],
    }
}

/// The same of an image that says what machine it wants.
fn hinted() -> NewEntry {
    NewEntry { resources: ResourceHints { memory_mib: Some(512), cpus: Some(1) }, ..entry() }
}

fn image(name: &str, image: &str) -> NewEntry {
    NewEntry { name: name.to_owned(), image: Some(image.to_owned()), ..NewEntry::default() }
}

fn add(text: &str) -> String {
    add_worker(text, &entry(), AddMode::Fail).unwrap()
}

#[test]
fn a_worker_is_added_to_a_list_that_is_empty_in_any_way() {
    let block =
        "  - name: new\n    image: docker.io/library/x:1\n    config:\n      A: \"1\"\n      B: \"a #b\"\n";
    for (before, after) in [
        ("", format!("workers:\n{block}")),
        ("# c\n", format!("# c\nworkers:\n{block}")),
        ("# c", format!("# c\nworkers:\n{block}")),
        ("workers: []\n", format!("workers:\n{block}")),
        ("workers: [] # none\n# x\n", format!("workers: # none\n{block}# x\n")),
        ("workers:\n", format!("workers:\n{block}")),
        ("workers: ~\norphan_grace: 1s\n", format!("workers:\n{block}orphan_grace: 1s\n")),
        (
            "workers:\n  # - name: example\n\norphan_grace: 1s\n",
            format!("workers:\n  # - name: example\n{block}\norphan_grace: 1s\n"),
        ),
        ("modules: []\n", format!("modules:\n{block}")),
        ("orphan_grace: 1s", format!("orphan_grace: 1s\nworkers:\n{block}")),
        ("---\nworkers: [\n]\n", format!("---\nworkers:\n{block}")),
        ("workers: []\r\n", format!("workers:\n{block}").replace('\n', "\r\n")),
    ] {
        assert_eq!(add(before), after, "{before}");
    }
    assert!(add(STARTER).starts_with("# The workers"));
}

#[test]
fn a_worker_goes_after_the_last_one_and_its_comments() {
    insta::assert_snapshot!(add("\
workers:
  # first
  - name: a # a!
    image: b

  # second
  -   image: c
      name: \"b\"
      # memory: 1

  # trailing
# bottom
orphan_grace: 1s
"), @r##"
    workers:
      # first
      - name: a # a!
        image: b

      # second
      -   image: c
          name: "b"
          # memory: 1

      - name: new
        image: docker.io/library/x:1
        config:
          A: "1"
          B: "a #b"

      # trailing
    # bottom
    orphan_grace: 1s
    "##);
    assert_eq!(
        add("workers:\n- name: a\n  image: |-\n    b\norphan_grace: 1s"),
        "workers:\n- name: a\n  image: |-\n    b\n- name: new\n  image: docker.io/library/x:1\n  config:\n    A: \"1\"\n    B: \"a #b\"\norphan_grace: 1s"
    );
    assert_eq!(
        add("workers: [{name: a}, {name: b}] # flow\n"),
        "workers: [{name: a}, {name: b}, {name: new, image: docker.io/library/x:1, config: {A: \"1\", B: \"a #b\"}}] # flow\n"
    );
}

#[test]
fn a_second_worker_of_the_same_name_is_refused_with_its_line() {
    let error =
        add_worker("# c\nworkers:\n  - image: x\n    name: 'new'\n", &entry(), AddMode::Fail).unwrap_err();
    insta::assert_snapshot!(error, @"there is already a worker named `new`, at line 3");
}

#[test]
fn adding_to_a_file_that_is_wrong_says_what_is_wrong() {
    let error = add_worker("workers:\n  - nam: x\n", &entry(), AddMode::Fail).unwrap_err();
    assert!(error.to_string().contains("unknown key `nam`"), "{error}");
    let error = add_worker("workers: [", &entry(), AddMode::Fail).unwrap_err();
    assert!(matches!(error, EditError::Config(_)), "{error}");
    let error = add_worker("", &image("../x", "x"), AddMode::Fail).unwrap_err();
    assert!(matches!(error, EditError::Entry(_)), "{error}");
}

#[test]
fn replacing_takes_the_new_image_and_keeps_the_old_values_and_comments() {
    let before = "\
workers:
  - name: new # n
    # why this image
    image: \"old:1\" # i
    config:
      # mine
      b: mine # over the image's
      DB:
        HOST: h
    resources: {memory: 512} # r
  - name: z
";
    let mut entry = entry();
    entry.config.push(("DB_HOST".to_owned(), "theirs".to_owned()));
    let after = add_worker(before, &entry, AddMode::Replace).unwrap();
    insta::assert_snapshot!(after, @r#"
    workers:
      - name: new # n
        # why this image
        image: docker.io/library/x:1 # i
        config:
          # mine
          b: mine # over the image's
          DB:
            HOST: h
          A: '1'
        resources: {memory: 512} # r
      - name: z
    "#);
    assert_eq!(add_worker(&after, &entry, AddMode::Replace).unwrap(), after, "twice is as good as once");
}

#[test]
fn resources_of_the_image_are_written_unless_the_entry_has_its_own() {
    let block = "  - name: new\n    image: docker.io/library/x:1\n    resources:\n      memory: 512\n      cpus: 1\n    config:\n      A: \"1\"\n      B: \"a #b\"\n";
    assert_eq!(add_worker("", &hinted(), AddMode::Fail).unwrap(), format!("workers:\n{block}"));
    assert_eq!(
        add_worker("workers: [{name: a}]", &hinted(), AddMode::Fail).unwrap(),
        "workers: [{name: a}, {name: new, image: docker.io/library/x:1, resources: {memory: 512, cpus: 1}, config: {A: \"1\", B: \"a #b\"}}]"
    );
    let only_cpus = ResourceHints { memory_mib: None, cpus: Some(2) };
    let entry = NewEntry { resources: only_cpus, ..image("w", "x") };
    assert_eq!(
        add_worker("", &entry, AddMode::Fail).unwrap(),
        "workers:\n  - name: w\n    image: x\n    resources:\n      cpus: 2\n"
    );

    for own in ["{disk: 1GiB} # mine", "# none yet", "{memory: 64}"] {
        let before = format!("workers:\n  - name: new\n    resources: {own}\n    image: y\n");
        let after = add_worker(&before, &hinted(), AddMode::Replace).unwrap();
        assert!(after.contains(&format!("    resources: {own}\n")) && !after.contains("512"), "{after}");
        assert_eq!(add_worker(&before, &hinted(), AddMode::Reset).unwrap(), format!("workers:\n{block}"));
    }
    let before = "workers:\n  - name: new # n\n    image: docker.io/library/x:1\n    config: {A: a, B: b}\n  - name: z\n";
    let after = add_worker(before, &hinted(), AddMode::Replace).unwrap();
    assert_eq!(
        after,
        "workers:\n  - name: new # n\n    image: docker.io/library/x:1\n    config: {A: a, B: b}\n    resources:\n      memory: 512\n      cpus: 1\n  - name: z\n"
    );
    assert_eq!(add_worker(&after, &hinted(), AddMode::Replace).unwrap(), after, "twice is as good as once");
}

#[test]
fn replacing_a_project_by_an_image_takes_the_path_away() {
    let before = "workers:\n  - name: new\n    worker_path: /x\n    restart: never # r\n";
    assert_eq!(
        add_worker(before, &image("new", "y"), AddMode::Replace).unwrap(),
        "workers:\n  - name: new\n    restart: never # r\n    image: y\n"
    );
}

fn project(name: &str, path: &str, exclude: &[&str]) -> NewEntry {
    NewEntry {
        name: name.to_owned(),
        worker_path: Some(path.into()),
        exclude: exclude.iter().map(|&pattern| pattern.to_owned()).collect(),
        ..NewEntry::default()
    }
}

#[test]
fn a_project_is_written_with_what_it_leaves_out() {
    let entry = project("p", "/srv/my project", &["*.log", "docs/", "!dist", "a, b"]);
    let list = r#"["*.log", docs/, "!dist", "a, b"]"#;
    let after = add_worker("", &entry, AddMode::Fail).unwrap();
    assert_eq!(
        after,
        format!("workers:\n  - name: p\n    worker_path: \"/srv/my project\"\n    exclude: {list}\n")
    );
    assert_eq!(
        add_worker("workers: [{name: a}]", &entry, AddMode::Fail).unwrap(),
        format!("workers: [{{name: a}}, {{name: p, worker_path: \"/srv/my project\", exclude: {list}}}]")
    );
    let config = load::parse(&after, Path::new("config.yaml"), &|_| None).unwrap();
    let source = Source::Local { path: "/srv/my project".into(), exclude: entry.exclude.clone() };
    assert_eq!(config.workers[0].source, source);
    assert_eq!(
        add_worker("", &project("p", "/p", &[]), AddMode::Fail).unwrap(),
        "workers:\n  - name: p\n    worker_path: /p\n"
    );
}

#[test]
fn replacing_a_project_keeps_what_it_leaves_out_unless_something_else_is_asked_for() {
    let before = "workers:\n  - name: p # p\n    worker_path: /p\n    exclude:\n      - \"*.log\"\n    restart: never\n  - name: z\n";
    let none = add_worker(before, &project("p", "/p", &[]), AddMode::Replace).unwrap();
    assert_eq!(none, before);
    let same = add_worker(before, &project("p", "/p", &["*.log"]), AddMode::Replace).unwrap();
    assert_eq!(same, before);
    let moved = add_worker(before, &project("p", "/q", &[]), AddMode::Replace).unwrap();
    assert_eq!(moved, before.replace("/p\n", "/q\n"));
    for (text, flow) in [(before, false), ("workers: [{name: p, worker_path: /p, restart: never}]", true)] {
        let after = add_worker(text, &project("p", "/p", &["*.tmp", "x"]), AddMode::Replace).unwrap();
        let config = load::parse(&after, Path::new("config.yaml"), &|_| None).unwrap();
        let source = Source::Local { path: "/p".into(), exclude: vec!["*.tmp".into(), "x".into()] };
        assert_eq!(config.workers[0].source, source, "{after}");
        assert!(after.contains("restart: never") && (flow || after.contains("# p")), "{after}");
    }
}

#[test]
fn replacing_an_image_by_a_project_takes_the_image_away_and_the_other_way_round() {
    let before = "workers:\n  - name: w\n    image: x\n    restart: never # r\n";
    let local = add_worker(before, &project("w", "/p", &["a"]), AddMode::Replace).unwrap();
    let config = load::parse(&local, Path::new("config.yaml"), &|_| None).unwrap();
    let source = Source::Local { path: "/p".into(), exclude: vec!["a".into()] };
    assert_eq!(config.workers[0].source, source, "{local}");
    assert!(!local.contains("image") && local.contains("restart: never # r\n"), "{local}");
    let again = add_worker(&local, &image("w", "x"), AddMode::Replace).unwrap();
    assert!(!again.contains("worker_path") && !again.contains("exclude"), "{again}");
    assert!(again.contains("image: x") && again.contains("restart: never # r\n"), "{again}");
}

#[test]
fn resetting_writes_the_entry_anew_and_nothing_else() {
    let before = "workers:\n  # a\n  - name: a\n    config: {B: 1}\n    # own\n  # b\n  - name: b\n";
    assert_eq!(
        add_worker(before, &image("a", "i"), AddMode::Reset).unwrap(),
        "workers:\n  # a\n  - name: a\n    image: i\n  # b\n  - name: b\n"
    );
    let flow = "workers: [{name: a, config: {B: 1}}, {name: b}]";
    assert_eq!(
        add_worker(flow, &image("a", "i"), AddMode::Reset).unwrap(),
        "workers: [{name: a, image: i}, {name: b}]"
    );
}

#[test]
fn a_file_that_is_not_accepted_tells_whom_it_can_do_without() {
    let text = "\
workers:
  - name: web
    imagee: nginx
  - name: twice
    image: a
  - image: nameless
  - name: ../up
    image: b
  - name: iii.own
    image: c
  - name: twice
    image: d
  - name: [no, text]
  - cache
  - name: 'db' # quoted
    image: e
";
    assert!(check_accepted(text).is_err());
    assert_eq!(removable_of(text).unwrap(), ["web", "db"]);
    let without = remove_worker(text, "db").unwrap().unwrap();
    assert_eq!(without, text.split("  - name: 'db'").next().unwrap());
    check_accepted(&remove_worker("workers: [{name: a}, {name: b, x: 1}]", "b").unwrap().unwrap()).unwrap();
    for broken in ["workers: [", "workers: {a: b}", "- a"] {
        assert!(removable_of(broken).is_err(), "{broken}");
    }
}

#[test]
fn a_removed_worker_takes_its_own_comments_and_no_others() {
    let text = "\
# top
workers:
  # first
  - name: a # x
    # in a
    image: b
    # after b

  # second
  - name: 'b'
# bottom
";
    assert_eq!(remove_worker(text, "c").unwrap(), None);
    let without_a = remove_worker(text, "a").unwrap().unwrap();
    assert_eq!(without_a, "# top\nworkers:\n  # first\n\n  # second\n  - name: 'b'\n# bottom\n");
    assert_eq!(
        remove_worker(&without_a, "b").unwrap().unwrap(),
        "# top\nworkers: []\n  # first\n\n  # second\n# bottom\n"
    );
    assert_eq!(
        remove_worker("workers: [{name: a}, {name: b}]", "a").unwrap().unwrap(),
        "workers: [{name: b}]"
    );
    for (before, name, after) in [
        ("workers: [{name: a}, {name: b}]", "b", "workers: [{name: a}]"),
        ("workers: [{name: a}]", "a", "workers: []"),
        ("workers: [\n  {name: a}, # a\n  {name: b} # b\n]", "b", "workers: [\n  {name: a}, # a\n   # b\n]"),
    ] {
        assert_eq!(remove_worker(before, name).unwrap().unwrap(), after);
    }
    assert_eq!(
        remove_worker("workers:\r\n- name: a\r\n- name: b\r\n", "b").unwrap().unwrap(),
        "workers:\r\n- name: a\r\n"
    );
}

#[test]
fn a_worker_can_be_removed_from_a_file_that_is_not_accepted() {
    let text = "workers:\n  - name: a\n    imag: x\n  - name: b\n";
    assert_eq!(remove_worker(text, "a").unwrap().unwrap(), "workers:\n  - name: b\n");
}

#[test]
fn an_edit_that_would_break_something_else_is_refused() {
    // The anchor that the second worker needs is in the first.
    let text = "workers:\n  - name: a\n    config: &c {A: 1}\n  - name: b\n    config: *c\n";
    let error = remove_worker(text, "a").unwrap_err();
    assert!(error.to_string().contains("found unknown anchor"), "{error}");
    assert_eq!(error.hint().unwrap(), "delete the item `- name: a` of `workers:` by hand");
}

#[test]
fn values_are_written_so_that_they_are_read_back_literally() {
    for value in [
        "",
        "~",
        "null",
        "yes",
        "1",
        "1.50",
        "0x1",
        "a: b",
        "# x",
        "${A}",
        "$$",
        "$A",
        "é\n\t\u{1b}\u{85}\u{feff}\"\\",
        "- x",
        "*a",
        "|",
        " a ",
        "12:30",
    ] {
        let mut entry = entry();
        entry.config = vec![("KEY".to_owned(), value.to_owned())];
        for text in ["", "workers: [{name: a}]"] {
            let after = add_worker(text, &entry, AddMode::Fail).unwrap();
            let config = load::parse(&after, Path::new("config.yaml"), &|_| None).unwrap();
            let env = config.workers.last().unwrap().env.clone().unwrap();
            assert_eq!(env, [("KEY".to_owned(), value.to_owned())], "{after}");
        }
    }
}

#[test]
fn a_linked_file_is_edited_where_it_is_and_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real.yaml"), dir.path().join("config.yaml"));
    fs::write(&real, "workers: []\n").unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("real.yaml", &link).unwrap();
    let written = edit_file(&link, |text| add_worker(text, &entry(), AddMode::Fail).map(Some)).unwrap();
    assert!(written && link.is_symlink());
    assert!(fs::read_to_string(&real).unwrap().contains("name: new"));
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(!edit_file(&link, |text| Ok(Some(text.to_owned()))).unwrap(), "the same text is not written");
    assert!(!edit_file(&link, |text| remove_worker(text, "nobody")).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");
}

#[test]
fn an_edit_clears_what_a_killed_edit_left_and_nothing_of_the_users() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let ours = dir.path().join(".config.yaml.iii-Ab12cd");
    let theirs = [".config.yaml.swp", ".tmp-mine", ".other.yaml.iii-Ab12cd", ".config.yaml.iii-my-notes"]
        .map(|name| dir.path().join(name));
    for file in theirs.iter().chain([&path, &ours]) {
        fs::write(file, "").unwrap();
    }
    edit_file(&path, |text| add_worker(text, &entry(), AddMode::Fail).map(Some)).unwrap();
    assert!(!ours.exists());
    assert!(theirs.iter().all(|file| file.exists()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), theirs.len() + 1);
}

#[test]
fn a_missing_file_is_created_from_the_starter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    assert!(!edit_file(&path, |text| remove_worker(text, "x")).unwrap());
    assert!(!path.exists());
    assert!(edit_file(&path, |text| add_worker(text, &entry(), AddMode::Fail).map(Some)).unwrap());
    assert!(fs::read_to_string(&path).unwrap().starts_with("# The workers"));
}

#[test]
fn an_error_names_the_file_that_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.yaml");
    fs::write(&path, "workers: [\n").unwrap();
    let error = edit_file(&path, |text| add_worker(text, &entry(), AddMode::Fail).map(Some)).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}:", path.display())), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "workers: [\n");
}

#[test]
fn edits_at_the_same_time_are_all_there_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("config.yaml");
    std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                let entry = image(&format!("w{n}"), "x");
                edit_file(path, |text| add_worker(text, &entry, AddMode::Fail).map(Some)).unwrap();
            });
        }
    });
    assert_eq!(load::load(path).unwrap().workers.len(), 8);
}

/// Pieces of a file in every layout, with a numbered comment wherever one may stand.
#[derive(Debug, Clone)]
struct Layout {
    items: Vec<Item>,
    indent: usize,
    flow: bool,
    crlf: bool,
    head: u8,
    tail: u8,
    last_newline: bool,
}

#[derive(Debug, Clone)]
struct Item {
    fields: Vec<u8>,
    dash: u8,
    quote: u8,
    comments: u16,
    blank: bool,
}

fn layouts() -> impl Strategy<Value = Layout> {
    let fields = Just((0..7u8).collect::<Vec<_>>()).prop_shuffle();
    let item = (fields, 0..8usize, 0..5u8, 0..3u8, any::<u16>(), any::<bool>()).prop_map(
        |(fields, many, dash, quote, comments, blank)| {
            let mut fields: Vec<u8> = fields.into_iter().take(many).filter(|f| *f != 0).collect();
            // Both of these are `config`.
            if fields.contains(&2) {
                fields.retain(|f| *f != 4);
            }
            fields.insert(usize::from(quote).min(fields.len()), 0);
            Item { fields, dash, quote, comments, blank }
        },
    );
    (
        proptest::collection::vec(item, 0..5),
        0..5usize,
        proptest::bool::weighted(0.2),
        any::<bool>(),
        0..4u8,
        0..5u8,
        any::<bool>(),
    )
        .prop_map(|(items, indent, flow, crlf, head, tail, last_newline)| Layout {
            items,
            indent,
            flow,
            crlf,
            head,
            tail,
            last_newline,
        })
}

impl Layout {
    fn text(&self) -> String {
        let mut n = 0;
        let mut note = move |wanted: bool| {
            n += 1;
            if wanted { format!(" # c{n}") } else { String::new() }
        };
        let mut out = match self.head {
            0 => String::new(),
            1 => format!("---{}\n", note(true)),
            2 => format!("{}\n\norphan_grace: 5s{}\n", note(true).trim(), note(true)),
            _ => format!("{}\n{}\n", note(true).trim(), note(true).trim()),
        };
        out += &if self.flow { self.flow_list(&mut note) } else { self.block_list(&mut note) };
        out += &match self.tail {
            0 => String::new(),
            1 => format!("{}\n", note(true).trim()),
            2 => format!("insecure_registries: [r:5000]{}\n", note(true)),
            3 => format!("\n  {}\n\n", note(true).trim()),
            _ => format!("\n# c\ninsecure_registries:{}\n- r:5000\n{}\n", note(true), note(true).trim()),
        };
        if !self.last_newline {
            out.truncate(out.trim_end_matches('\n').len());
        }
        if self.crlf { out.replace('\n', "\r\n") } else { out }
    }

    fn flow_list(&self, note: &mut dyn FnMut(bool) -> String) -> String {
        let mut out = format!("workers: [{}\n", note(true));
        for (i, item) in self.items.iter().enumerate() {
            let comma = if i + 1 < self.items.len() || item.blank { "," } else { "" };
            out += &format!(
                "  {{name: {}, image: x}}{comma}{}\n",
                quoted(&format!("w{i}"), item.quote),
                note(item.comments & 1 > 0)
            );
        }
        out + &format!("  {}\n]{}\n", note(true).trim(), note(true))
    }

    fn block_list(&self, note: &mut dyn FnMut(bool) -> String) -> String {
        if self.items.is_empty() {
            return format!("workers:{}{}\n", ["", " []", " ~"][usize::from(self.head) % 3], note(true));
        }
        let mut out = format!("workers:{}\n", note(self.head > 1));
        let pad = " ".repeat(self.indent);
        for (i, item) in self.items.iter().enumerate() {
            let has = |bit: u8| item.comments >> (bit % 16) & 1 > 0;
            if has(0) {
                out += &format!("{pad}{}\n", note(true).trim());
            }
            let (dash, inner) = match item.dash {
                0 => ("-   ".to_owned(), format!("{pad}    ")),
                1 => (format!("-{}\n{pad}   ", note(has(1))), format!("{pad}   ")),
                2 => (format!("- &a{i}\n{pad}  "), format!("{pad}  ")),
                _ => ("- ".to_owned(), format!("{pad}  ")),
            };
            out += &format!("{pad}{dash}");
            for (k, field) in item.fields.iter().enumerate() {
                if k > 0 {
                    if has(2 + *field) {
                        out += &format!("{inner}{}\n", note(true).trim());
                    }
                    out += &inner;
                }
                out += &field_text(*field, i, item.quote, &inner, note);
            }
            if has(9) {
                out += &format!("{inner}{}\n", note(true).trim());
            }
            if item.blank {
                out += "\n";
            }
        }
        out
    }
}

fn quoted(text: &str, how: u8) -> String {
    match how {
        0 => text.to_owned(),
        1 => format!("'{text}'"),
        _ => format!("\"{text}\""),
    }
}

fn field_text(
    field: u8,
    item: usize,
    quote: u8,
    inner: &str,
    note: &mut dyn FnMut(bool) -> String,
) -> String {
    let end = note(quote == 1);
    match field {
        0 => format!("name: {}{end}\n", quoted(&format!("w{item}"), quote)),
        1 => format!("\"image\" : {}{end}\n", quoted("reg/x:1", quote)),
        2 => format!("config:{end}\n{inner}  {}\n{inner}  K1: {}{end}x\n{inner}  nested:\n{inner}    - {{a: [1, 2]}}\n", note(true).trim(), if end.is_empty() { "#" } else { "v" }),
        3 => format!("resources: {{memory: 512, # in flow{}\n{inner}  cpus: 1}}\n", note(true)),
        4 => format!("config:{end}\n{inner}  TEXT: |\n{inner}    # not a comment\n{inner}     - name: w0\n\n{inner}    x\n").replace("config:", "restart: never\n#C\nconfig:").replace("#C\n", "").replace("\nconfig:", &format!("\n{inner}config:")),
        5 => format!("stop_timeout:{end}\n{inner}  10s\n"),
        _ => format!("boot_timeout: \"1\\\n{inner}  0s\"{end}\n"),
    }
}

fn workers_of(text: &str) -> Vec<crate::config::schema::WorkerConfig> {
    load::parse(text, Path::new("config.yaml"), &|_| None).unwrap().workers
}

fn comments_of(text: &str) -> Vec<String> {
    tree::comments(text).unwrap().into_iter().map(|(_, comment)| comment).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_layout_keeps_its_comments_and_values_when_a_worker_comes_and_goes(layout in layouts(), at in any::<prop::sample::Index>()) {
        let text = layout.text();
        let (before, comments) = (workers_of(&text), comments_of(&text));

        let added = add_worker(&text, &hinted(), AddMode::Fail).unwrap();
        prop_assert_eq!(&workers_of(&added)[..before.len()], &before[..], "{}", added);
        prop_assert_eq!(comments_of(&added), comments.clone(), "{}", added);
        for line in text.lines().filter(|line| line.trim_start().starts_with('#')) {
            prop_assert!(added.lines().any(|l| l == line), "{}", added);
        }

        let gone = remove_worker(&added, "new").unwrap().unwrap();
        prop_assert_eq!(workers_of(&gone), before.clone(), "{}", gone);
        prop_assert_eq!(comments_of(&gone), comments.clone(), "{}", gone);

        if before.is_empty() { return Ok(()); }
        let index = at.index(before.len());
        let name = before[index].name.clone();
        let replaced = add_worker(&text, &NewEntry { name: name.clone(), ..hinted() }, AddMode::Replace).unwrap();
        prop_assert_eq!(comments_of(&replaced), comments.clone(), "{}", replaced);
        let env = workers_of(&replaced)[index].env.clone().unwrap();
        for variable in before[index].env.as_ref().unwrap() {
            prop_assert!(env.contains(variable), "{}", replaced);
        }

        let removed = remove_worker(&text, &name).unwrap().unwrap();
        let mut rest = before.clone();
        rest.remove(index);
        prop_assert_eq!(workers_of(&removed), rest, "{}", removed);
    }

    #[test]
    fn any_text_is_edited_or_refused_without_a_panic(text in "((workers:|modules:|name: x|image: |config:|- |: |\\[|\\]|\\{|\\}|\n|  |#|&a|\\*a|\\||x|\"|'|\r\n|---\n|é|,|\\.\\.\\.\n)){0,30}") {
        for mode in [AddMode::Replace, AddMode::Reset] {
            let _ = add_worker(&text, &NewEntry { name: "x".to_owned(), ..hinted() }, mode);
        }
        let _ = remove_worker(&text, "x");
        let _ = load::parse(&text, Path::new("config.yaml"), &|_| None);
    }
}
