//! Entries on disk: two files that take turns, so that the space they take is bounded. A thread of its own writes, so that a slow disk
//! holds nothing up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tracing::warn;

/// Entries kept in memory and on disk, in bytes. With thirty links a day comes to some 300 kB while they are steady, and to 4 MB while all change each minute.
pub const MAX_BYTES: usize = 4 << 20;
/// The size at which a file is full, in bytes: both together hold what memory does.
const MAX_FILE: u64 = MAX_BYTES as u64 / 2;
/// Entries on their way to the disk; more are only in memory.
const MAX_WAITING: usize = 4096;
/// How soon what the disk did not take is tried again.
const AGAIN: Duration = Duration::from_secs(30);
const NAMES: [&str; 2] = ["events.old.jsonl", "events.jsonl"];

/// Takes lines for the disk.
pub struct Journal {
    lines: SyncSender<String>,
}

impl Journal {
    /// Writes a line soon. If the disk is far behind the line is left out.
    pub fn write(&self, line: String) {
        let _ = self.lines.try_send(line);
    }
}

/// Reads the lines that a directory holds, the oldest first, and begins to add to them.
pub fn open(dir: &Path) -> (Vec<String>, Journal) {
    let lines = NAMES.iter().flat_map(|name| read(&dir.join(name))).collect();
    let (sender, inbox) = sync_channel(MAX_WAITING);
    let writer = Writer { dir: dir.to_owned(), file: None, size: 0, has_warned: false };
    // Without a thread, entries are in memory alone.
    if let Err(error) = std::thread::Builder::new().name("journal".into()).spawn(move || writer.run(&inbox)) {
        warn!("what happens is not kept on disk: {error}");
    }
    (lines, Journal { lines: sender })
}

/// The lines of a file that are JSON objects. What a crash or a broken disk left otherwise is skipped, and said.
fn read(path: &Path) -> Vec<String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!("cannot read what happened earlier: {}: {error}", path.display());
            return Vec::new();
        }
    };
    let (mut lines, mut damaged) = (Vec::new(), 0);
    let mut reader = BufReader::new(file.take(2 * MAX_FILE));
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = std::str::from_utf8(&line).map(str::trim_end).unwrap_or_default();
        match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
            Ok(_) => lines.push(text.to_owned()),
            // The writer begins with an empty line each time.
            Err(_) if text.is_empty() && line == b"\n" => {}
            Err(_) => damaged += 1,
        }
        line.clear();
    }
    if damaged > 0 {
        warn!("skipped {damaged} damaged lines of what happened earlier: {}", path.display());
    }
    lines
}

struct Writer {
    dir: PathBuf,
    file: Option<File>,
    size: u64,
    has_warned: bool,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<String>) {
        let mut unwritten = String::new();
        loop {
            let next = match unwritten.is_empty() {
                true => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => inbox.recv_timeout(AGAIN),
            };
            match next {
                Ok(line) => add(&mut unwritten, &line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(line) = inbox.try_recv() {
                add(&mut unwritten, &line);
            }
            match self.write(&unwritten) {
                Ok(()) => {
                    unwritten.clear();
                    self.has_warned = false;
                }
                Err(error) => {
                    self.file = None;
                    if !std::mem::replace(&mut self.has_warned, true) {
                        let dir = self.dir.display();
                        warn!("what happens is kept in memory until it can be written to {dir}: {error}");
                    }
                }
            }
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.size >= MAX_FILE {
            self.file = None;
            let [old, new] = NAMES.map(|name| self.dir.join(name));
            match fs::rename(new, old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let path = self.dir.join(NAMES[1]);
                let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
                self.size = file.metadata()?.len();
                // A line that was cut short must not spoil the next one.
                if self.size > 0 {
                    file.write_all(b"\n")?;
                    self.size += 1;
                }
                none.insert(file)
            }
        };
        let written = file.write_all(text.as_bytes());
        match written {
            Ok(()) => self.size += text.len() as u64,
            // What a full disk took of it would come twice.
            Err(_) => drop(file.set_len(self.size)),
        }
        written
    }
}

/// Adds a line to those that are not on disk yet; of too many, it is left out.
fn add(unwritten: &mut String, line: &str) {
    if unwritten.len() + line.len() < MAX_FILE as usize {
        unwritten.push_str(line);
        unwritten.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-journal-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        dir
    }

    /// Waits until the files hold these lines.
    fn await_lines(dir: &Path, wanted: &[&str]) {
        let begun = Instant::now();
        loop {
            let lines: Vec<String> = NAMES.iter().flat_map(|name| read(&dir.join(name))).collect();
            if lines == wanted {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{lines:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn lines_are_there_after_a_restart_and_damage_costs_only_what_it_hit() {
        let dir = directory("restart");
        let (lines, journal) = open(&dir);
        assert!(lines.is_empty());
        journal.write("{\"n\":1}".into());
        journal.write("{\"n\":2}".into());
        await_lines(&dir, &["{\"n\":1}", "{\"n\":2}"]);
        drop(journal);
        let path = dir.join(NAMES[1]);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"\xff\xfe\x00\n[1]\n{\"n\":3}\n{\"n\":");
        fs::write(&path, bytes).unwrap();
        let (lines, journal) = open(&dir);
        assert_eq!(lines, ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"]);
        journal.write("{\"n\":4}".into());
        await_lines(&dir, &["{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{\"n\":4}"]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_files_are_bounded_and_what_cannot_be_written_is_tried_again() {
        let dir = directory("bounded");
        let mut writer = Writer { dir: dir.clone(), file: None, size: 0, has_warned: false };
        let line = format!("{{\"text\":\"{}\"}}\n", "x".repeat(1000));
        for _ in 0..3 * MAX_BYTES / line.len() {
            writer.write(&line).unwrap();
        }
        let sizes = NAMES.map(|name| fs::metadata(dir.join(name)).unwrap().len());
        assert!(sizes.iter().all(|size| *size <= MAX_FILE + line.len() as u64), "{sizes:?}");
        assert!(sizes[0] >= MAX_FILE, "{sizes:?}");
        // Gone under the writer's feet: it goes on once the directory is back.
        fs::remove_dir_all(&dir).unwrap();
        writer.file = None;
        writer.write(&line).unwrap_err();
        fs::create_dir(&dir).unwrap();
        writer.write(&line).unwrap();
        assert_eq!(read(&dir.join(NAMES[1])).len(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }
}
