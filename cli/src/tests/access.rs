//! `holdfast access`: what it says of lists, and of what is wrong with them.

use super::*;

/// What each command prints, or how it is refused; files by their names alone.
async fn pages(bench: &Bench, commands: &[&[&str]]) -> String {
    let mut pages = String::new();
    for arguments in commands {
        let (text, result) = bench.run(arguments).await;
        let refused = match result {
            Ok(()) => String::new(),
            Err(error) if arguments.contains(&"json") => format!("{:#}\n", error.to_json()),
            Err(error) => format!("{}\n", error.to_text()),
        };
        pages.push_str(&format!("$ {}\n{text}{refused}\n", arguments.join(" ")));
    }
    pages.replace(&format!("{}/", bench.folder.path().display()), "")
}

fn file(bench: &Bench, name: &str, contents: &str) -> String {
    let path = bench.folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn bad_entries_are_told_by_where_they_were_written() {
    let bench = Bench::new().await;
    let bad =
        "\u{feff}# clients\r\n10.0.0.0/8 # office \r\n10.0.0.1/8\r\n\r\n10.0.0.1\u{200b}\r\n10.0.0.0/8\r\n";
    let bad = file(&bench, "clients.txt", bad);
    let refused = pages(
        &bench,
        &[
            &["access", "set", "demo", "--file", &bad],
            &["-o", "json", "access", "add", "demo", "192.0.2.1", "--file", &bad],
            &["access", "add", "demo", "10.0.0.1/8", "192.0.2.1", "192.0.2.1/32", "10.0.0.0/33"],
            &["access", "add", "demo", "192.0.2.1", "203.0.113.7"],
            &["access", "remove", "demo", "203.0.113.7/32", "192.0.2.1"],
            &["access", "remove", "demo", "--file", &bad],
        ],
    )
    .await;
    insta::assert_snapshot!(refused);
}

#[tokio::test]
async fn a_file_without_entries_is_named() {
    let bench = Bench::new().await;
    let (empty, comments) = (file(&bench, "empty.txt", ""), file(&bench, "comments.txt", "# none yet\n\n"));
    let refused = pages(
        &bench,
        &[
            &["access", "set", "demo"],
            &["access", "set", "demo", "--file", &empty],
            &["access", "set", "demo", "--file", &comments],
            &["access", "add", "demo", "--file", &comments],
            &["-o", "json", "access", "remove", "demo", "--file", &empty],
        ],
    )
    .await;
    insta::assert_snapshot!(refused);
}

#[tokio::test]
async fn a_list_is_changed_and_shown_and_one_is_one() {
    let bench = Bench::new().await;
    let list = file(&bench, "list.txt", "\u{feff}10.0.0.0/8\t\r\n192.0.2.7 \r\n");
    let shown = pages(
        &bench,
        &[
            &["access", "set", "demo", "--file", &list, "--confirm-within", "90s"],
            &["access", "add", "demo", "192.0.2.1", "--plan"],
            &["access", "show", "demo"],
            &["access", "confirm", "demo"],
            &["-o", "json", "access", "confirm", "demo"],
        ],
    )
    .await;
    insta::assert_snapshot!(shown);
}
