//! The command line, as it is read and as its help shows it.

use clap::CommandFactory as _;

use super::*;

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn a_create_is_read_as_the_demo_writes_it() {
    let cli = Cli::try_parse_from([
        "holdfast",
        "cluster",
        "create",
        "demo",
        "--engine",
        "postgresql",
        "--nodes",
        "n1,n2,n3",
        "--durability",
        "quorum",
        "--param",
        "a=b=c",
        "--param",
        "d=",
        "--extension",
        "x",
        "--detach",
        "--output",
        "json",
    ])
    .unwrap();
    let Command::Cluster(Cluster::Create { name, nodes, param, durability, run, .. }) = cli.command else {
        panic!()
    };
    assert_eq!((name.as_str(), nodes.len(), durability), ("demo", 3, Durability::Quorum));
    assert_eq!(param, [("a".into(), "b=c".into()), ("d".into(), String::new())]);
    assert!(run.detach && !run.plan.plan);
    assert_eq!(cli.global.output, Format::Json);
}

#[test]
fn every_command_has_an_example_in_its_help() {
    fn check(command: &clap::Command, path: &str) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let path = format!("{path} {}", sub.get_name());
            assert!(sub.get_about().is_some(), "{path} says what it does");
            if sub.has_subcommands() {
                check(sub, &path);
            } else {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example") && help.contains(path.trim_start()), "{path}: {help}");
            }
        }
    }
    check(&Cli::command(), "holdfast");
}

#[test]
fn the_help_changes_only_on_purpose() {
    fn collect(command: &mut clap::Command, text: &mut String) {
        let name = command.get_bin_name().unwrap_or("holdfast").to_owned();
        text.push_str(&format!("$ {name} --help\n{}\n", command.render_long_help()));
        for sub in command.get_subcommands_mut().filter(|sub| !sub.is_hide_set()) {
            collect(sub, text);
        }
    }
    let mut text = String::new();
    let mut command = Cli::command().term_width(100);
    command.build();
    collect(&mut command, &mut text);
    insta::assert_snapshot!(text);
}
