//! The keys of the reference registry that aren't implemented.

use super::{Section, truth};
use crate::config::context::Context;
use crate::config::env::Variable;
use crate::config::yaml::{Node, Value};

impl Section<'_> {
    /// Keys of the reference registry that have no effect here, and the reasons.
    pub(in crate::config) fn ignore(&self, keys: &[(&'static str, &str)]) {
        for (key, reason) in keys {
            if self.demanded(key).is_some_and(|node| !node.is_empty()) {
                self.doubt(key, format_args!("has no effect: {reason}"));
            }
        }
    }

    /// A key of the reference registry that can't be ignored: that would weaken what the operator
    /// asked for. With the reason and the alternative.
    pub(in crate::config) fn refuse(&self, key: &'static str, reason: &str) {
        if self.demanded(key).is_some_and(|node| !node.is_empty()) {
            self.reject(key, format_args!("is not supported: {reason}"));
        }
    }

    /// The same where the value `restricts` something. Other values say what holds in any case.
    pub(in crate::config) fn refuse_if(
        &self,
        key: &'static str,
        restricts: impl FnOnce(&Node) -> bool,
        reason: &str,
    ) {
        if self.demanded(key).is_some_and(|node| restricts(&node)) {
            self.reject(key, format_args!("is not supported: {reason}"));
        }
    }

    /// The same where a switch isn't in the position that makes no difference.
    pub(in crate::config) fn refuse_switch(&self, key: &'static str, harmless: bool, reason: &str) {
        let is_harmless = |node: &Node| match &node.value {
            Value::Scalar(text) => truth(text) == Some(harmless),
            _ => false,
        };
        let restricts = |node: &Node| !node.is_empty() && !is_harmless(node);
        self.refuse_if(key, restricts, reason);
    }

    /// A storage driver that isn't implemented. Naming it is enough, even without parameters.
    pub(in crate::config) fn refuse_driver(&self, key: &'static str) {
        if self.demanded(key).is_some() {
            let path = self.path(key);
            let message = format!(
                "the storage driver `{path}` is not supported; use `storage.filesystem` (or \
                 `storage.inmemory` for tests)"
            );
            self.problem(key, message);
        }
    }

    /// The reference registry's plug-ins by kind, a list of maps each. They can't be ignored unless
    /// they are disabled.
    pub(in crate::config) fn refuse_middleware(&self, key: &'static str) {
        let node = self.demanded(key).filter(|node| !node.is_empty());
        if node.is_some_and(|node| all_disabled(&node)) {
            self.doubt(key, "has no effect: all its entries are disabled");
        } else {
            let reason = "what it would enforce or rewrite would be left out; remove its entries, \
                          or disable them";
            self.refuse(key, reason);
        }
    }

    /// The value of a key that isn't implemented. Of values that variables set in it, the last one.
    fn demanded(&self, key: &'static str) -> Option<Node> {
        let Context {
            report,
            variables,
            keys,
        } = self.context;
        keys.add(&self.path, key, false);
        let path = self.path(key);
        let variable = variables.at(&path).map(Variable::any);
        let mut node = variable.or_else(|| self.written(key));
        for (_, variable) in variables.below(&path) {
            let inner = variable.scalar();
            if node.is_none() || !inner.is_empty() {
                node = Some(inner);
            }
        }
        if let Some(node) = &node {
            report.set_origin(&path, node.origin.clone());
        }
        node
    }
}

/// Whether all plug-ins of all kinds are disabled.
fn all_disabled(middleware: &Node) -> bool {
    let is_disabled = |entry: &Node| match entry.get("disabled").map(|node| &node.value) {
        Some(Value::Scalar(text)) => truth(text) == Some(true),
        _ => entry.is_empty(),
    };
    let of_kind = |kind: &Node| match &kind.value {
        Value::List(entries) => entries.iter().all(is_disabled),
        _ => kind.is_empty(),
    };
    match &middleware.value {
        Value::Map(kinds) => kinds.iter().all(|(_, kind)| of_kind(kind)),
        _ => false,
    }
}
