//! How deep the values of a template can be nested.
//!
//! MiniJinja drops, compares and writes values recursively, to their bottom. What a request brings is as deep as JSON is read, and what
//! an expression adds is bounded by its brackets. Only variables can carry a value from one round of a loop into the next, where it gets
//! a level deeper, so whatever a variable is set to passes these filters (see [`super::operators`]).

use minijinja::value::{DynObject, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Names of the filters; no template has filters of these names.
pub(super) const KEPT: &str = "_kept";
pub(super) const KEPT_INSIDE: &str = "_kept_inside";
/// Deepest value of a variable.
const MAX_DEPTH: usize = 256;
/// Items that are looked at for a step.
const ITEMS_A_STEP: usize = 8;

/// What a variable is set to.
///
/// # Errors
/// It is nested too deeply, or holds what cannot be looked into.
pub(super) fn kept(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    keep(state, value, true)
}

/// What an attribute of a namespace is set to. It holds no namespace, since one that holds itself has no bottom.
///
/// # Errors
/// The same, or it holds a namespace.
pub(super) fn kept_inside(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    keep(state, value, false)
}

fn keep(state: &State<'_, '_>, value: Value, namespaces: bool) -> Result<Value, Error> {
    let mut look = Look {
        state,
        namespaces,
        items: 0,
    };
    Ok(look.plain(&value, 0)?.unwrap_or(value))
}

struct Look<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    namespaces: bool,
    items: usize,
}

impl Look<'_, '_, '_> {
    /// The value in a form that shows all that it holds: what is computed when it is asked for, such as a slice or a reversed list,
    /// becomes a list. None where it has that form already.
    fn plain(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let Some(object) = value.as_object() else {
            return Ok(None);
        };
        if depth == MAX_DEPTH {
            let why = format!("a variable would be nested more than {MAX_DEPTH} deep");
            return Err(refused(why));
        }
        let name = object.type_name();
        match name.rsplit("::").next().unwrap_or(name) {
            "Namespace" if !self.namespaces => Err(refused("a namespace cannot hold a namespace")),
            // They hold values that they do not show.
            "Loop" => Err(refused("a variable cannot be set to the loop")),
            "Cycler" => Err(refused("a variable cannot be set to a cycler")),
            name => match object.repr() {
                ObjectRepr::Map => self.plain_map(object, name == "Namespace", depth),
                ObjectRepr::Seq | ObjectRepr::Iterable => self.plain_list(value, depth),
                _ => Ok(None),
            },
        }
    }

    fn plain_map(
        &mut self,
        object: &DynObject,
        is_namespace: bool,
        depth: usize,
    ) -> Result<Option<Value>, Error> {
        let mut changed = false;
        let mut pairs = Vec::new();
        for (key, held) in object.try_iter_pairs().into_iter().flatten() {
            self.pay()?;
            let (new_key, new) = (self.plain(&key, depth + 1)?, self.plain(&held, depth + 1)?);
            changed |= new_key.is_some() || new.is_some();
            pairs.push((new_key.unwrap_or(key), new.unwrap_or(held)));
        }
        if changed && is_namespace {
            return Err(refused("a namespace can be made of plain values and lists only"));
        }
        Ok(changed.then(|| Value::from_pairs(pairs)))
    }

    fn plain_list(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let mut changed = value.kind() == ValueKind::Iterable;
        let mut items = Vec::new();
        for item in value.try_iter()? {
            self.pay()?;
            let new = self.plain(&item, depth + 1)?;
            changed |= new.is_some();
            items.push(new.unwrap_or(item));
        }
        Ok(match (changed, value.is_tuple()) {
            (false, _) => None,
            (true, true) => Some(Tuple::new(items).into()),
            (true, false) => Some(items.into()),
        })
    }

    fn pay(&mut self) -> Result<(), Error> {
        self.items += 1;
        if self.items.is_multiple_of(ITEMS_A_STEP) {
            self.state.consume_fuel(1)?;
        }
        Ok(())
    }
}

fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}
