//! Who measures runs alone: figures of two tests at once would be of neither.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub type Alone = RwLockWriteGuard<'static, ()>;

static ORDER: RwLock<()> = RwLock::const_new(());

/// For a test that measures. No other test of this program runs until the guard is dropped.
pub async fn alone() -> Alone {
    ORDER.write().await
}

/// For a test that measures nothing. It runs beside its like, and beside nobody who measures.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    ORDER.blocking_read()
}
