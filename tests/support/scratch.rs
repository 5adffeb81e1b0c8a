//! A directory for one story, below the target directory: devices are large, and `/tmp` may be memory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that ends with the story.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new one. The name is short because sockets may lie in it.
    pub(crate) fn new(story: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{story}-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a directory for the story");
        Self { path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("BREAKWATER_KEEP").is_some() {
            eprintln!("kept: {}", self.path.display());
        } else if std::thread::panicking() {
            print_logs(&self.path);
        } else {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Prints the end of every log below `dir` and removes everything large.
fn print_logs(dir: &Path) {
    const LOG_TAIL: usize = 4000;
    const LARGE: u64 = 16 << 20;
    for path in files(dir) {
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > LARGE) {
            let _ = std::fs::remove_file(&path);
        } else if path.file_name().is_some_and(|name| name == "log") || path.extension().is_some_and(|ext| ext == "log")
        {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
            let start = (text.len().saturating_sub(LOG_TAIL)..text.len()).find(|at| text.is_char_boundary(*at));
            eprintln!("--- {} ---\n{}", path.display(), &text[start.unwrap_or(text.len())..]);
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
