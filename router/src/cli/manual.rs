//! Completions for shells, and manual pages: made of what the command line says of itself.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::error::{Doing, Result};

/// Where `weft install` puts them: each of these shells looks there by itself.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "/usr/local/share/bash-completion/completions/weft"),
    (Shell::Zsh, "/usr/local/share/zsh/site-functions/_weft"),
    (Shell::Fish, "/usr/local/share/fish/vendor_completions.d/weft.fish"),
];
const PAGES: &str = "/usr/local/share/man/man1";

/// A file to install.
pub struct ManualFile {
    /// Where it belongs.
    pub path: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// What a shell has to know to complete commands.
pub fn completions(mut command: Command, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "weft", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Completions and manual pages of a command and all its subcommands.
pub fn files(command: Command) -> Result<Vec<ManualFile>> {
    let complete = |(shell, path): (Shell, &str)| ManualFile {
        path: path.to_owned(),
        bytes: completions(command.clone(), shell).into_bytes(),
    };
    let mut files: Vec<ManualFile> = COMPLETIONS.into_iter().map(complete).collect();
    let mut built = command;
    built.build();
    add_pages(&built, &mut files).doing(|| "cannot write a manual page".into())?;
    Ok(files)
}

fn add_pages(command: &Command, files: &mut Vec<ManualFile>) -> io::Result<()> {
    if command.is_hide_set() || command.get_name() == "help" {
        return Ok(());
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let mut bytes = Vec::new();
    Man::new(command.clone()).render(&mut bytes)?;
    files.push(ManualFile { path: format!("{PAGES}/{name}.1"), bytes });
    command.get_subcommands().try_for_each(|command| add_pages(command, files))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_every_shell_its_completions() {
        let add = Command::new("add").about("Add a name").arg(Arg::new("name").long("name"));
        let hidden = Command::new("stage").hide(true);
        let command = Command::new("weft").subcommand(Command::new("dns").subcommand(add)).subcommand(hidden);
        let files = files(command.clone()).unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        for path in ["man1/weft.1", "man1/weft-dns.1", "man1/weft-dns-add.1", "completions/weft", "_weft", "weft.fish"]
        {
            assert!(paths.iter().any(|found| found.ends_with(path)), "{path} is not in {paths:?}");
        }
        assert_eq!(paths.len(), 6, "{paths:?}");
        let page = files.iter().find(|file| file.path.ends_with("weft-dns-add.1")).unwrap();
        assert!(String::from_utf8_lossy(&page.bytes).contains("Add a name"));
        assert!(completions(command, Shell::Bash).contains("--name"));
    }
}
