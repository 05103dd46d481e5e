//! `network:` and `ports:` of a worker.

use iii_protocol::network::{Egress, Network, PublishedPort, Rule};

use super::error::Problem;
use super::fields::{Fields, Values};
use super::ports::{MAX_PORTS, Taken, ports};
use super::rules::rule;
use super::suggest::suggest;
use super::tree::{Node, Value};

pub(super) const NETWORK_KEYS: &[&str] = &["egress"];
pub(super) const EGRESS_KEYS: &[&str] = &["allow", "deny"];
const POLICIES: &[&str] = &["public", "none", "all"];
/// Most rules of one list: each connection is held against all of them.
const MAX_RULES: usize = 1024;

/// Reads both keys of the worker `name`; `place` is where we are, and `taken` what the workers before it have.
pub(super) fn network(
    fields: &Fields<'_>,
    (name, place): (&str, &str),
    values: &mut Values<'_>,
    taken: &mut Taken,
) -> Result<Network, Problem> {
    let egress = match fields.get("network") {
        Some(node) => {
            let network = Fields::of(node, &format!("under `network` {place}"), NETWORK_KEYS)?;
            network.get("egress").map(|node| egress(node, place, values)).transpose()?
        }
        None => None,
    };
    let ports = match fields.get("ports") {
        Some(node) => published(node, name, values, taken)?,
        None => Vec::new(),
    };
    Ok(Network { egress: egress.unwrap_or(Egress::Public), ports })
}

fn egress(node: &Node, place: &str, values: &mut Values<'_>) -> Result<Egress, Problem> {
    if !matches!(node.value, Value::Map { .. }) {
        let expected = "a policy, or a mapping with `allow` and `deny`";
        // What an unset variable would have said does not matter: the worker is not started.
        return Ok(values.parsed(node, "egress", expected, policy)?.unwrap_or(Egress::None));
    }
    let fields = Fields::of(node, &format!("under `egress` {place}"), EGRESS_KEYS)?;
    if let Some(entry) = fields.entry("allow")
        && is_empty(&entry.value)
    {
        // It could be taken for "nothing", and would mean "everything public".
        let message = "`allow` has no rules: write `egress: none` to allow nothing, or take the key out";
        return Err(Problem::at(entry.key_span, message));
    }
    let mut list = |key: &str| match fields.get(key) {
        Some(node) => rules(node, key, values),
        None => Ok(Vec::new()),
    };
    Ok(Egress::Rules { allow: list("allow")?, deny: list("deny")? })
}

fn is_empty(node: &Node) -> bool {
    node.is_null() || matches!(&node.value, Value::List { items, .. } if items.is_empty())
}

fn policy(text: &str) -> Result<Egress, String> {
    match text {
        "public" => Ok(Egress::Public),
        "none" => Ok(Egress::None),
        "all" => Ok(Egress::All),
        _ => Err(match suggest(text, POLICIES.iter().copied()) {
            Some(meant) => format!("unknown policy `{text}`; did you mean `{meant}`?"),
            None => format!("unknown policy `{text}`; the policies are {}, or rules", POLICIES.join(", ")),
        }),
    }
}

fn rules(node: &Node, key: &str, values: &mut Values<'_>) -> Result<Vec<Rule>, Problem> {
    let items = items(node, key, "rules such as `api.example.com:443`")?;
    if items.len() > MAX_RULES {
        let message = format!("`{key}` has {} rules, more than the {MAX_RULES} it may have", items.len());
        return Err(Problem::at(node.span, message));
    }
    let mut rules = Vec::with_capacity(items.len());
    for item in items {
        rules.extend(values.parsed(item, key, "a rule such as `api.example.com:443`", rule)?);
    }
    Ok(rules)
}

fn published(
    node: &Node,
    worker: &str,
    values: &mut Values<'_>,
    taken: &mut Taken,
) -> Result<Vec<PublishedPort>, Problem> {
    let mut all = Vec::new();
    for item in items(node, "ports", "ports such as `8080:80`")? {
        for port in values.parsed(item, "ports", "a port such as `8080:80`", ports)?.unwrap_or_default() {
            if all.len() == MAX_PORTS {
                let message = format!("worker `{worker}` publishes more than {MAX_PORTS} ports");
                return Err(Problem::at(item.span, message));
            }
            taken.take(port, worker, item.span)?;
            all.push(port);
        }
    }
    Ok(all)
}

fn items<'n>(node: &'n Node, key: &str, expected: &str) -> Result<&'n [Node], Problem> {
    match &node.value {
        Value::List { items, .. } => Ok(items),
        _ => {
            let message = format!("`{key}`: expected a list of {expected}, found {}", node.kind());
            Err(Problem::at(node.span, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::load::parse;

    fn read(text: &str) -> Result<Vec<Network>, String> {
        let vars = |name: &str| (name == "PORT").then(|| "8080".to_owned());
        let config = parse(text, Path::new("c.yaml"), &vars).map_err(|e| e.to_string())?;
        Ok(config.workers.into_iter().map(|worker| worker.network).collect())
    }

    fn one(fields: &str) -> Network {
        read(&format!("workers:\n  - {{name: w, {fields}}}\n")).expect(fields).remove(0)
    }

    #[test]
    fn a_worker_reaches_the_internet_and_publishes_nothing_unless_it_says_so() {
        for fields in
            ["", "network:", "network: {egress: }", "ports:", "ports: []", "network: {egress: public}"]
        {
            assert_eq!(one(fields), Network::default(), "{fields}");
        }
    }

    #[test]
    fn policies_rules_and_ports_are_read() {
        for (fields, want) in [
            ("network: {egress: none}", "none"),
            ("network: {egress: all}", "all"),
            ("network: {egress: {}}", "public"),
            (
                "network: {egress: {allow: [api.example.com:443, '*.example.org', 10.1.2.3], deny: ['*:25']}}",
                "allow api.example.com:443, allow *.example.org, allow 10.1.2.3, deny *:25",
            ),
            ("network: {egress: {deny: ['${UNSET:-1.2.3.4}']}}", "deny 1.2.3.4"),
        ] {
            assert_eq!(one(fields).egress.to_string(), want, "{fields}");
        }
        let ports = one("ports: [80, '${PORT}:81', 9000-9001:9000-9001/udp]").ports;
        let shown: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let want = ["80->80/tcp", "8080->81/tcp", "9000->9000/udp", "9001->9001/udp"];
        assert_eq!(shown, want.map(|it| format!("127.0.0.1:{it}")));
    }

    #[test]
    fn what_is_wrong_is_shown_at_its_place() {
        for (fields, fault) in [
            ("network: {egress: publc}", "1:39: `egress`: unknown policy `publc`; did you mean `public`?"),
            ("network: {egress: closed}", "1:39: `egress`: unknown policy `closed`; the policies are public"),
            ("network: {egress: false}", "1:39: `egress`: expected a policy, or a mapping"),
            ("network: {egress: [a]}", "1:39: `egress`: expected a policy, or a mapping"),
            (
                "network: {egres: all}",
                "1:31: unknown key `egres` under `network` in worker `w`; did you mean",
            ),
            ("network: all", "1:30: expected a mapping under `network`"),
            (
                "network: {ports: [80]}",
                "1:31: unknown key `ports` under `network` in worker `w`; `ports` belongs",
            ),
            ("egress: all", "1:21: unknown key `egress` in worker `w`; `egress` belongs under `network:`"),
            (
                "network: {allow: [a]}",
                "1:31: unknown key `allow` under `network` in worker `w`; `allow` belongs",
            ),
            (
                "network: {egress: {alow: [a]}}",
                "unknown key `alow` under `egress` in worker `w`; did you mean",
            ),
            ("network: {egress: {allow: a.b}}", "`allow`: expected a list of rules"),
            ("network: {egress: {allow: []}}", "1:40: `allow` has no rules: write `egress: none`"),
            ("network: {egress: {allow: , deny: [a]}}", "1:40: `allow` has no rules: write `egress: none`"),
            (
                "network: {egress: {allow: [a, 10.0.0.5/8]}}",
                "1:51: `allow`: `10.0.0.5/8` begins in the middle",
            ),
            ("network: {egress: {deny: [[a]]}}", "`deny`: expected a rule such as"),
            ("ports: 80", "`ports`: expected a list of ports such as `8080:80`, found a number"),
            ("ports: [8080:80, 80/sctp]", "1:38: `ports`: `sctp` is neither `tcp` nor `udp`"),
            ("ports: [true]", "`ports`: expected a port such as `8080:80`, found a boolean"),
            ("ports: [1000-1255:1-256, 80]", "1:46: worker `w` publishes more than 256 ports"),
        ] {
            let error = read(&format!("workers: [{{name: w, {fields}}}]")).expect_err(fields);
            assert!(error.contains(fault), "{fields}: {error}");
        }
    }

    #[test]
    fn a_port_that_is_there_twice_shows_both_places() {
        let error =
            read("workers:\n  - name: a\n    ports:\n      - 8080:80\n      - 8080:81\n").unwrap_err();
        insta::assert_snapshot!(error, @r"
        c.yaml:5:9: port 127.0.0.1:8080 (tcp) is published twice
          |
        5 |       - 8080:81
          |         ^^^^^^^
          |
        4 |       - 8080:80
          |         ^^^^^^^ first here
        ");
        let error =
            read("workers:\n  - {name: a, ports: [79-81:79-81]}\n  - {name: b, ports: ['0.0.0.0:80:80']}\n");
        let error = error.unwrap_err();
        assert!(error.contains("3:23: port 0.0.0.0:80 (tcp) is published by worker `a` already"), "{error}");
    }
}
