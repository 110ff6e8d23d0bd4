//! Any object, with any field missing or with nonsense in it: refused, or translated, never a panic.

use std::sync::Arc;

use rand::RngExt as _;

use super::{Chance, corpus, edits::proxies};
use crate::{
    source::{manifest, object::ObjectChange},
    translate::{status, testing::World},
};

/// Objects looked at by default.
const ROUNDS: usize = 700;

#[test]
fn no_object_makes_translation_panic() {
    let Chance { mut rng, seed, factor, .. } = Chance::new();
    let objects = corpus::objects();
    let nonsense = corpus::nonsense();
    let mut world = World::new(corpus::MESH);
    let mut mirrors = proxies(&world);
    let (mut good, mut refused) = (0, 0);
    for round in 0..ROUNDS * factor {
        let mut object = objects[rng.random_range(0..objects.len())].clone();
        let mut told = Vec::new();
        for _ in 0..rng.random_range(1..4) {
            let places = corpus::places(&object);
            let Some(place) = places.get(rng.random_range(0..places.len().max(1))).cloned() else { break };
            if rng.random_bool(0.5) {
                corpus::remove(&mut object, &place);
                told.push(format!("without {place}"));
            } else if let Some(value) = object.pointer_mut(&place) {
                *value = nonsense[rng.random_range(0..nonsense.len())].clone();
                told.push(format!("{place} = {}", value.to_string().chars().take(40).collect::<String>()));
            }
        }
        let what = format!("seed {seed}, round {round}: {}", told.join(", "));
        let text = serde_json::to_string(&object).unwrap();
        let guard = Told(&what, &text);
        for reading in manifest::read("test.json".as_ref(), &text) {
            let Some(object) = reading.object else {
                refused += usize::from(reading.key.is_some());
                continue;
            };
            good += 1;
            let key = object.key.clone();
            let before = world.index().object(&key).cloned();
            let change = world.change(vec![ObjectChange::Upsert(Arc::new(object))]);
            mirrors.iter_mut().for_each(|m| m.learn(&world.translator, world.index(), &change));
            if let Some(object) = world.index().object(&key) {
                drop(status::of(world.index(), object));
            }
            // The next object finds the mesh as it was, or every other time what has piled up so far.
            if round % 2 == 0 {
                let undo = before.map_or(ObjectChange::Remove(key), ObjectChange::Upsert);
                let change = world.change(vec![undo]);
                mirrors.iter_mut().for_each(|m| m.learn(&world.translator, world.index(), &change));
            }
        }
        std::mem::forget(guard);
    }
    assert!(good > ROUNDS / 10 && refused > ROUNDS / 10, "{good} good and {refused} refused objects tell nothing");
}

/// Says what was looked at when the test panics.
struct Told<'a>(&'a str, &'a str);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!("{}\n{}", self.0, self.1);
    }
}
