//! Who works on a worker's project right now. As long as somebody does, its files are followed, whatever `watch:` says.
//! It outlives the worker's actor.

use std::sync::Arc;

use tokio::sync::watch;

/// How many there are.
#[derive(Debug, Clone)]
pub struct Developers(Arc<watch::Sender<usize>>);

impl Default for Developers {
    fn default() -> Developers {
        Developers(Arc::new(watch::Sender::new(0)))
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Developer(Arc<watch::Sender<usize>>);

impl Developers {
    /// One more.
    pub fn join(&self) -> Developer {
        self.0.send_modify(|count| *count += 1);
        Developer(self.0.clone())
    }

    /// Whether there is one.
    pub fn is_any(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Changes when one comes or goes.
    pub fn subscribe(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }
}

impl Drop for Developer {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_who_leaves_is_noticed() {
        let developers = Developers::default();
        let mut news = developers.subscribe();
        let first = developers.join();
        let second = developers.clone().join();
        drop(first);
        assert!(developers.is_any() && news.has_changed().unwrap());
        news.mark_unchanged();
        drop(second);
        assert!(!developers.is_any() && news.has_changed().unwrap());
    }
}
