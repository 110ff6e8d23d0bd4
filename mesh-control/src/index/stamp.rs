//! Stamps: what a cached result was computed from, in a form that is cheap to compare.
//!
//! Every value that is derived anew gets a number no other value of this process ever had. Two equal stamps mean the
//! same value, in whatever copy of the index; different stamps mean nothing. They take no part in equality.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Number of a state of some value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    /// Of what does not exist.
    pub const NONE: Stamp = Stamp(0);

    /// A new one.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A shared value with its stamp.
#[derive(Debug)]
pub struct Stamped<T: ?Sized> {
    stamp: Stamp,
    value: Arc<T>,
}

impl<T> Stamped<T> {
    /// A new state.
    pub fn new(value: T) -> Self {
        Self { stamp: Stamp::next(), value: Arc::new(value) }
    }

    /// `value`, or `old` when nothing changed, so that the stamp stays.
    pub fn keep(old: Option<&Self>, value: T) -> Self
    where
        T: PartialEq,
    {
        match old {
            Some(old) if *old.value == value => old.clone(),
            _ => Self::new(value),
        }
    }
}

impl<T: ?Sized> Stamped<T> {
    /// Its stamp.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The value.
    pub fn arc(&self) -> &Arc<T> {
        &self.value
    }
}

impl<T: ?Sized> Clone for Stamped<T> {
    fn clone(&self) -> Self {
        Self { stamp: self.stamp, value: self.value.clone() }
    }
}

impl<T: ?Sized> Deref for Stamped<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: ?Sized + PartialEq> PartialEq for Stamped<T> {
    fn eq(&self, other: &Self) -> bool {
        self.stamp == other.stamp || self.value == other.value
    }
}

impl<T: Default> Default for Stamped<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
