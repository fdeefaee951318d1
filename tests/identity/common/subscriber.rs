//! A subscriber of the tests' own: what it is told, with what the kernel says at that moment, on that thread.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use super::kernel;

#[derive(Clone, Debug)]
pub struct Told {
    pub target: String,
    pub level: Level,
    pub fields: BTreeMap<&'static str, String>,
    /// Of the thread that is told, while it is.
    pub identity: kernel::Identity,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

impl Told {
    #[track_caller]
    pub fn field(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in {self:?}"))
    }
}

static TOLD: Mutex<Vec<Told>> = Mutex::new(Vec::new());
static ASKED: Mutex<Vec<kernel::Identity>> = Mutex::new(Vec::new());

struct Recorder {
    /// What it does on each event, after it has noted it.
    then: fn(),
    /// What it does when it is asked whether it would be told.
    when_asked: fn(),
    max_level: Option<LevelFilter>,
}

impl Subscriber for Recorder {
    /// Asked anew each time.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.max_level
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_ours = metadata.target().starts_with("privilege_guard");
        if is_ours {
            ASKED
                .lock()
                .expect("nobody panics there")
                .push(kernel::identity());
            (self.when_asked)();
        }
        is_ours
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let (target, level) = (metadata.target().to_owned(), *metadata.level());
        let mut told = Told {
            target,
            level,
            fields: BTreeMap::new(),
            identity: kernel::identity(),
        };
        event.record(&mut told);
        TOLD.lock().expect("nobody panics there").push(told);
        (self.then)();
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// From now on, on every thread, for the rest of the process.
pub fn listen() {
    listen_and(|| ());
}

/// The same, and on each event does this.
pub fn listen_and(then: fn()) {
    be_subscriber(Recorder {
        then,
        when_asked: || (),
        max_level: None,
    });
}

/// As [`listen`], for events of this level and the more important ones.
pub fn listen_up_to(level: LevelFilter) {
    be_subscriber(Recorder {
        then: || (),
        when_asked: || (),
        max_level: Some(level),
    });
}

/// The same, and does this when it is asked whether it would be told.
pub fn listen_and_when_asked(when_asked: fn()) {
    be_subscriber(Recorder {
        then: || (),
        when_asked,
        max_level: None,
    });
}

fn be_subscriber(recorder: Recorder) {
    tracing::subscriber::set_global_default(recorder).expect("the first subscriber");
}

/// What has been told since this was last asked.
pub fn told() -> Vec<Told> {
    std::mem::take(&mut *TOLD.lock().expect("nobody panics there"))
}

/// Of the thread that asked whether it would be told, since this was last asked.
pub fn asked() -> Vec<kernel::Identity> {
    std::mem::take(&mut *ASKED.lock().expect("nobody panics there"))
}

/// The one event that has been told since.
#[track_caller]
pub fn told_once() -> Told {
    let [once]: [Told; 1] = told().try_into().expect("one event");
    once
}
