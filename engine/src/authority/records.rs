//! Where the authority's records lie: versioned records, changed by multi-key compare-and-swap, durable before told.
//!
//! The trait is small so that another store can stand behind it; redb is the one embedded. A commit is all or nothing,
//! and returns only once it is on the device. A failed commit leaves an unknown state: the process ends (DESIGN 6).

use std::fs::File;
use std::path::{Path, PathBuf};

use engine_core::authority::records::{Key, RecordChange, StoredRecord, Value};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

/// Why records could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// Somebody else has them open.
    #[error("{0} is in use by another authorityd")]
    InUse(PathBuf),
    /// The store failed; what became of the change is unknown.
    #[error("the records in {path} failed: {source}")]
    Store {
        /// Which file.
        path: PathBuf,
        /// How.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record's version was not the expected one: somebody else changed it. Nothing was changed.
    #[error("record `{key}` has version {found}, expected {expected}: another authority is at work on {path}")]
    Conflict {
        /// Which file.
        path: PathBuf,
        /// Which record.
        key: String,
        /// The version it has; 0 is "does not exist".
        found: u64,
        /// The version expected.
        expected: u64,
    },
    /// A record cannot be understood. Nothing was changed.
    #[error("record `{key}` in {path} can't be read: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Which record.
        key: String,
        /// Why not.
        reason: String,
    },
}

/// Versioned records.
pub trait Records {
    /// All records.
    ///
    /// # Errors
    /// When they cannot be read, or one cannot be understood.
    fn load(&self) -> Result<Vec<StoredRecord>, RecordsError>;

    /// Makes these changes durable, in order, all or none.
    ///
    /// # Errors
    /// `Conflict` when a version is not the expected one; otherwise the state is unknown.
    fn commit(&mut self, changes: &[RecordChange]) -> Result<(), RecordsError>;

    /// Counts the commits, so that others can wait for the next.
    fn watch(&self) -> watch::Receiver<u64>;
}

const TABLE: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("records");

/// Records in one redb file.
pub struct RedbRecords {
    path: PathBuf,
    database: Database,
    commits: watch::Sender<u64>,
}

impl RedbRecords {
    /// Opens the records in `dir`, which is made if it does not exist.
    ///
    /// # Errors
    /// When the directory or file cannot be made, read or locked.
    pub fn open(dir: &Path) -> Result<Self, RecordsError> {
        let path = dir.join("authority.redb");
        let failed = |source: std::io::Error| RecordsError::Store { path: path.clone(), source: source.into() };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let database = match Database::create(&path) {
            Ok(database) => database,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(RecordsError::InUse(path)),
            Err(error) => return Err(RecordsError::Store { path, source: error.into() }),
        };
        // The file's name has to survive as well.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        let records = Self { path, database, commits: watch::Sender::new(0) };
        records.run(|transaction| {
            transaction.open_table(TABLE)?;
            Ok(())
        })?;
        Ok(records)
    }

    fn failed(&self, source: impl Into<redb::Error>) -> RecordsError {
        RecordsError::Store { path: self.path.clone(), source: source.into().into() }
    }

    fn run(&self, work: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), RecordsError> {
        let mut transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        transaction.set_durability(Durability::Immediate).map_err(|error| self.failed(error))?;
        work(&transaction).map_err(|error| self.failed(error))?;
        transaction.commit().map_err(|error| self.failed(error))
    }
}

impl Records for RedbRecords {
    fn load(&self) -> Result<Vec<StoredRecord>, RecordsError> {
        let read = || -> Result<Vec<(String, u64, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(TABLE)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (version, bytes) = value.value();
                rows.push((key.value().to_owned(), version, bytes.to_vec()));
            }
            Ok(rows)
        };
        let rows = read().map_err(|error| self.failed(error))?;
        let parse = |(key, version, bytes): (String, u64, Vec<u8>)| {
            let unreadable =
                |reason: String| RecordsError::Unreadable { path: self.path.clone(), key: key.clone(), reason };
            Ok(StoredRecord {
                key: key.parse::<Key>().map_err(|error| unreadable(error.to_string()))?,
                version,
                value: serde_json::from_slice::<Value>(&bytes).map_err(|error| unreadable(error.to_string()))?,
            })
        };
        rows.into_iter().map(parse).collect()
    }

    fn commit(&mut self, changes: &[RecordChange]) -> Result<(), RecordsError> {
        let mut conflict = None;
        let committed = self.run(|transaction| {
            let mut table = transaction.open_table(TABLE)?;
            for change in changes {
                let key = change.key.to_string();
                let found = table.get(key.as_str())?.map_or(0, |row| row.value().0);
                if found != change.expected {
                    conflict = Some((key, found, change.expected));
                    // Any error drops the transaction, and with it all changes.
                    return Err(redb::Error::TransactionInProgress);
                }
                match &change.value {
                    Some(value) => {
                        let bytes = serde_json::to_vec(value).map_err(|error| redb::Error::Io(error.into()))?;
                        table.insert(key.as_str(), (change.expected + 1, bytes.as_slice()))?;
                    }
                    None => drop(table.remove(key.as_str())?),
                }
            }
            Ok(())
        });
        if let Some((key, found, expected)) = conflict {
            return Err(RecordsError::Conflict { path: self.path.clone(), key, found, expected });
        }
        committed?;
        self.commits.send_modify(|count| *count += 1);
        Ok(())
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.commits.subscribe()
    }
}
