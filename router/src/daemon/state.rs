//! What is on disk: the identity key, the secrets, and the store.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use rand::TryRng;
use rand::rngs::SysRng;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;
use weft_crypto::{Identity, Keyring, Secret};

use super::keys::{StoreKey, TableName};
use crate::error::{Doing, Failure, Result};

/// One table of bytes. Its keys: the node's ([`weft_mesh::stored`]), and the shell's ([`super::keys`]).
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("weft");
const STORE_CACHE: usize = 1 << 20;
/// Filed under [`StoreKey::Schema`]: the format of all keys and values. A release that changes one of them raises it, and reads the older
/// formats or refuses them.
const SCHEMA: u32 = 2;
/// The largest secret file that is read.
const MAX_SECRET_FILE: u64 = 64 * 1024;
/// How often, and how many times, something is asked for that another router holds.
const LET_GO_POLL: Duration = Duration::from_millis(50);
const LET_GO_POLLS: u32 = 20;
/// Free bytes on a disk that is not full.
const ROOM: u64 = 1 << 20;

/// Waits a second for files that another router holds: a child that a killed router has just forked still has all of them
/// open until it becomes another program.
pub fn once_let_go<T, E>(mut attempt: impl FnMut() -> Result<T, E>, is_held: impl Fn(&E) -> bool) -> Result<T, E> {
    for _ in 0..LET_GO_POLLS {
        match attempt() {
            Err(error) if is_held(&error) => std::thread::sleep(LET_GO_POLL),
            result => return result,
        }
    }
    attempt()
}

/// Fresh random bytes from the operating system, enough for a key.
pub fn entropy() -> Result<[u8; 32]> {
    random()
}

/// Fresh random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).doing(|| "cannot get random bytes from the system".into())?;
    Ok(bytes)
}

/// Makes the state directory if it is not there, and checks that it is ours alone.
pub fn open_dir(dir: &Path) -> Result<()> {
    let what = || format!("cannot use the state directory {}", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).doing(what)?;
    let metadata = fs::metadata(dir).doing(what)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        let owner = metadata.uid();
        return Err(Failure::new(format!("{}: it belongs to user {owner}; choose another with --state-dir", what())));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(Failure::new(format!("{}: others may write to it; chmod 700 it", what())));
    }
    Ok(())
}

/// The host's identity; made at the first start.
pub fn identity(dir: &Path) -> Result<Identity> {
    let path = dir.join("identity");
    let what = || format!("cannot use the identity key {}", path.display());
    match fs::metadata(&path) {
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            Err(Failure::new(format!("{}: others may read it; chmod 600 it", what())))
        }
        Ok(_) => {
            let text = fs::read_to_string(&path).doing(what)?;
            let seed = unhex(text.trim()).ok_or_else(|| {
                Failure::new(format!("{}: it is damaged; restore it, or move it away to become a new host", what()))
            })?;
            Ok(Identity::from_seed(&seed))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let identity = Identity::from_seed(&entropy()?);
            let text = hex::encode(identity.seed());
            // Written beside and renamed, so that a crash leaves no half key.
            let fresh = path.with_extension("new");
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh).doing(what)?;
            file.set_permissions(Permissions::from_mode(0o600)).doing(what)?;
            writeln!(file, "{text}").and_then(|()| file.sync_all()).doing(what)?;
            fs::rename(&fresh, &path).doing(what)?;
            Ok(identity)
        }
        Err(error) => Err(error).doing(what),
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    // The text form of a key is the text form of a peer id: 64 hex digits.
    text.parse::<weft_crypto::PeerId>().ok().map(|id| id.0)
}

/// Where the network's secrets come from.
#[derive(Clone, Debug)]
pub enum SecretSource {
    /// A file, read again on reload.
    File(PathBuf),
    /// The environment.
    Text(String),
    /// Anyone may join.
    Insecure,
}

impl SecretSource {
    /// Reads the secrets.
    pub fn read(&self) -> Result<Keyring> {
        match self {
            SecretSource::File(path) => {
                let what = || format!("cannot use the secret file {}", path.display());
                let metadata = match fs::metadata(path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        let hint = "it is not there; copy it from another host, or make the first: weft secret new";
                        return Err(Failure::new(format!("{}: {hint}", what())));
                    }
                    metadata => metadata.doing(what)?,
                };
                if metadata.mode() & 0o007 != 0 {
                    return Err(Failure::new(format!("{}: everybody may read it; chmod 600 it", what())));
                }
                if metadata.len() > MAX_SECRET_FILE {
                    return Err(Failure::new(format!("{}: it is over {MAX_SECRET_FILE} bytes", what())));
                }
                let text = fs::read_to_string(path).doing(what)?;
                Keyring::parse(&text).doing(what)
            }
            SecretSource::Text(text) => Keyring::parse(text).doing(|| "cannot use WEFT_SECRET".into()),
            SecretSource::Insecure => Ok(Keyring::insecure()),
        }
    }
}

/// Whether the machine has not started anew since a router last ran on this store: then the disk is the one it wrote, and
/// not a copy from some time before.
///
/// Two marks tell: the machine's boot, and a number that each start of a router writes to the store and beside its control
/// socket, which no copy of the store brings back.
pub fn note_start(store: &Store, kept: &[(Vec<u8>, Vec<u8>)], socket: &Path) -> Result<bool> {
    let what = || "cannot note this start of the router".to_owned();
    let boot = fs::read("/proc/sys/kernel/random/boot_id").doing(what)?;
    let beside = socket.with_extension("life");
    let [boot_key, life_key] = [StoreKey::Boot.encode(), StoreKey::Life.encode()];
    let is_kept = |key: &Vec<u8>, value: &[u8]| kept.iter().any(|(k, v)| k == key && v == value);
    let continues = is_kept(&boot_key, &boot) && fs::read(&beside).is_ok_and(|life| is_kept(&life_key, &life));
    let life = entropy()?.to_vec();
    // The store first: a crash between the two leaves marks that differ, and that is the safe side.
    if store.write_at_start([(&boot_key, &Some(boot)), (&life_key, &Some(life.clone()))]) {
        fs::write(&beside, life).doing(what)?;
    } else {
        // Nothing will tell a copy of the store from what this life writes to it: the next one takes it for a copy.
        let _ = fs::remove_file(&beside);
    }
    Ok(continues)
}

/// A fresh network secret, as text.
pub fn new_secret() -> Result<String> {
    Ok(Secret::generate(&entropy()?))
}

/// The crash-safe store. A disk that is full, or fails once, costs what it was asked to take meanwhile, and no more: the store is
/// opened anew for the next write.
pub struct Store {
    path: PathBuf,
    /// None: it failed, and could not be opened again yet.
    database: Mutex<Option<Database>>,
    /// What keeps it from being written, for people.
    problem: Mutex<Option<String>>,
}

/// A change to the store: a key, and its value or none.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

impl Store {
    /// Opens or makes the store in a state directory. On a full disk an existing store can be read.
    pub fn open(dir: &Path) -> Result<Store> {
        let path = dir.join("store.redb");
        let database = open_database(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                Failure::new(format!("another router uses {}; stop it, or choose another --state-dir", dir.display()))
            }
            error => Failure::new(format!(
                "the store {} cannot be opened: {error}; make room on the disk, or move it away to start without what was \
                 remembered",
                path.display()
            )),
        })?;
        let store = Store { path, database: Mutex::new(Some(database)), problem: Mutex::default() };
        fs::set_permissions(&store.path, Permissions::from_mode(0o600)).doing(|| "cannot protect the store".into())?;
        let known = store.schema()?;
        if known.as_ref().is_some_and(|known| *known != SCHEMA.to_le_bytes()) {
            return Err(Failure::new(format!(
                "the store {} was written by another version of weft; install that, or move the store away to start without what was \
                 remembered",
                store.path.display()
            )));
        }
        // What is noted need not be noted again: a store that could not be written on a full disk may not open again, and it is yet to be read.
        if known.is_none() {
            let (key, value) = (StoreKey::Schema.encode(), Some(SCHEMA.to_le_bytes().to_vec()));
            store.write([(&key, &value)])?;
        }
        Ok(store)
    }

    /// Returns all keys and values.
    pub fn read(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let Some(table) = self.table()? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for entry in table.iter().doing(cannot_read)? {
            let (key, value) = entry.doing(cannot_read)?;
            if key.value() != StoreKey::Schema.encode() {
                all.push((key.value().to_vec(), value.value().to_vec()));
            }
        }
        Ok(all)
    }

    /// Returns the format that the store was written in; none if nothing was ever written.
    fn schema(&self) -> Result<Option<Vec<u8>>> {
        let Some(table) = self.table()? else { return Ok(None) };
        let found = table.get(StoreKey::Schema.encode().as_slice()).doing(cannot_read)?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    /// Returns the table as it is now; none if nothing was ever written.
    fn table(&self) -> Result<Option<redb::ReadOnlyTable<&'static [u8], &'static [u8]>>> {
        let mut database = self.lock();
        match self.opened(&mut database)?.begin_read().doing(cannot_read)?.open_table(TABLE) {
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            table => table.map(Some).doing(cannot_read),
        }
    }

    /// Makes changes, all or none; they survive a crash once this returns. After an `Err` nothing of them was made.
    pub fn write<'a>(&self, changes: impl IntoIterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>) -> Result<()> {
        let mut database = self.lock();
        let written = self.opened(&mut database).and_then(|database| write_to(database, changes));
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match &written {
            Err(error) => {
                // A database that met an error of the disk takes nothing more until it is opened again.
                *database = None;
                *problem = Some(error.to_string());
            }
            // On a full disk the store has some room of its own left: what fits in there proves nothing.
            Ok(()) => drop(problem.take_if(|_| has_room(&self.path))),
        }
        written
    }

    /// Makes changes while a router starts; false, with a warning, if they were not made. A host whose disk is full carries its containers all
    /// the same.
    pub fn write_at_start<'a>(&self, changes: impl IntoIterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>) -> bool {
        let mut changes = changes.into_iter().peekable();
        let written = if changes.peek().is_none() { Ok(()) } else { self.write(changes) };
        if let Err(error) = &written {
            warn!("{error}; going on with what is there");
        }
        written.is_ok()
    }

    /// Takes note of a failure to write what belongs to the store and lies beside it.
    pub fn note_problem(&self, error: &Failure) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }

    /// What keeps it from being written, in a line.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Database>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened<'d>(&self, database: &'d mut Option<Database>) -> Result<&'d Database> {
        let opened = match database.take() {
            Some(database) => database,
            None => open_database(&self.path).doing(cannot_write)?,
        };
        Ok(database.insert(opened))
    }
}

fn open_database(path: &Path) -> Result<Database, redb::DatabaseError> {
    once_let_go(
        || redb::Builder::new().set_cache_size(STORE_CACHE).create(path),
        |error| matches!(error, redb::DatabaseError::DatabaseAlreadyOpen),
    )
}

/// Whether the disk that a file is on has room; one that does not tell has.
fn has_room(path: &Path) -> bool {
    statvfs(path).map_or(true, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()) >= ROOM)
}

fn cannot_read() -> String {
    "cannot read the store; move it away to start without what was remembered".to_owned()
}

fn cannot_write() -> String {
    "cannot write the store; is the disk full?".to_owned()
}

fn write_to<'a>(
    database: &Database,
    changes: impl IntoIterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
) -> Result<()> {
    let transaction = database.begin_write().doing(cannot_write)?;
    {
        let mut table = transaction.open_table(TABLE).doing(cannot_write)?;
        for (key, value) in changes {
            match value {
                Some(value) => drop(table.insert(key.as_slice(), value.as_slice()).doing(cannot_write)?),
                None => drop(table.remove(key.as_slice()).doing(cannot_write)?),
            }
        }
    }
    transaction.commit().doing(cannot_write)
}

/// A table of things by name, all of it in memory and all changes on disk before they count.
pub struct Table<T> {
    store: Arc<Store>,
    table: TableName,
    all: Mutex<BTreeMap<String, T>>,
}

impl<T: Clone + Serialize + DeserializeOwned> Table<T> {
    /// Returns a table with its entries among `kept`; those that cannot be read are left out.
    pub fn new(store: Arc<Store>, table: TableName, kept: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let read = |(key, value): &(Vec<u8>, Vec<u8>)| match StoreKey::parse(key)? {
            StoreKey::Entry(of, name) if of == table => Some((name, serde_json::from_slice(value).ok()?)),
            _ => None,
        };
        Table { store, table, all: Mutex::new(kept.iter().filter_map(read).collect()) }
    }

    /// One of them.
    pub fn find(&self, name: &str) -> Option<T> {
        self.lock().get(name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<(String, T)> {
        self.lock().iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Puts one in, or in place of another.
    pub fn set(&self, name: &str, value: T) -> Result<()> {
        self.put(&mut self.lock(), name, value)
    }

    /// Changes one, if it is there; whether it is.
    pub fn update(&self, name: &str, change: impl FnOnce(&mut T)) -> Result<bool> {
        let mut all = self.lock();
        let Some(mut value) = all.get(name).cloned() else { return Ok(false) };
        change(&mut value);
        self.put(&mut all, name, value).map(|()| true)
    }

    /// Takes one out; returns it.
    pub fn remove(&self, name: &str) -> Result<Option<T>> {
        let mut all = self.lock();
        if all.contains_key(name) {
            self.write(name, None)?;
        }
        Ok(all.remove(name))
    }

    fn put(&self, all: &mut BTreeMap<String, T>, name: &str, value: T) -> Result<()> {
        let bytes = serde_json::to_vec(&value).doing(|| format!("cannot put {name} into words"))?;
        self.write(name, Some(bytes))?;
        all.insert(name.to_owned(), value);
        Ok(())
    }

    fn write(&self, name: &str, value: Option<Vec<u8>>) -> Result<()> {
        let key = StoreKey::Entry(self.table, name.to_owned()).encode();
        tokio::task::block_in_place(|| self.store.write([(&key, &value)]))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weft-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        open_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn the_identity_is_made_once_and_kept_private() {
        let dir = dir("identity");
        let first = identity(&dir).unwrap().peer_id();
        assert_eq!(identity(&dir).unwrap().peer_id(), first);
        let path = dir.join("identity");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(identity(&dir).err().unwrap().to_string().contains("chmod 600"));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "junk").unwrap();
        assert!(identity(&dir).err().unwrap().to_string().contains("damaged"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_store_keeps_what_it_was_told_and_a_corrupt_one_is_said_to_be() {
        let dir = dir("store");
        let store = Store::open(&dir).unwrap();
        assert!(Store::open(&dir).err().unwrap().to_string().contains("another router"));
        let (a, b) = (b"a".to_vec(), b"b".to_vec());
        store.write([(&a, &Some(b"1".to_vec())), (&b, &Some(b"2".to_vec()))]).unwrap();
        store.write([(&a, &None)]).unwrap();
        drop(store);
        assert_eq!(Store::open(&dir).unwrap().read().unwrap(), [(b"b".to_vec(), b"2".to_vec())]);
        let newer = Some((SCHEMA + 1).to_le_bytes().to_vec());
        Store::open(&dir).unwrap().write([(&StoreKey::Schema.encode(), &newer)]).unwrap();
        assert!(Store::open(&dir).err().unwrap().to_string().contains("another version of weft"));
        fs::write(dir.join("store.redb"), vec![7; 9000]).unwrap();
        assert!(Store::open(&dir).err().unwrap().to_string().contains("move it away"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_store_that_is_let_go_of_at_once_is_waited_for() {
        let dir = dir("let-go");
        let store = Store::open(&dir).unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(store);
        });
        assert!(Store::open(&dir).is_ok());
        holder.join().unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn secret_files_are_checked() {
        let dir = dir("secret");
        let path = dir.join("secret");
        let source = SecretSource::File(path.clone());
        assert!(source.read().is_err());
        fs::write(&path, new_secret().unwrap()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(source.read().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(source.read().unwrap().secrets().len(), 1);
        fs::write(&path, "hunter2").unwrap();
        assert!(source.read().unwrap_err().to_string().contains("bits"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
