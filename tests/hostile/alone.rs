//! A lock for tests that measure. A test that measures runs alone, because figures of two tests at
//! the same time would describe neither. Tests that measure nothing run beside each other. The lock
//! holds within one test program only.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub type Alone = RwLockWriteGuard<'static, ()>;

static ORDER: RwLock<()> = RwLock::const_new(());

/// Takes the lock for a test that measures. No other test of this program runs until the guard is
/// dropped.
pub async fn alone() -> Alone {
    ORDER.write().await
}

/// Takes the lock for a test that measures nothing. Such tests run beside each other, but never
/// beside a test that measures.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    ORDER.blocking_read()
}
