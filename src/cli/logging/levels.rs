//! The filter of log lines by their modules' levels.

use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::log_levels::LogLevels;

/// Lets through the lines that their module's level permits. tracing remembers the decision for each place
/// that logs, until a level changes.
pub(super) struct ByModule(pub(super) Arc<LogLevels>);

impl ByModule {
    fn permits(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0.level_of(metadata.target())
    }
}

impl<S: Subscriber> Layer<S> for ByModule {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.permits(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.permits(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.0.most_verbose()))
    }
}
