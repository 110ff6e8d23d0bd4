//! The value of a tree.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::parser::{Binary, Expr};
use super::{Attributes, Value};

/// `None`: it has none.
pub fn evaluate<'a>(expr: &'a Expr, attributes: &'a dyn Attributes) -> Option<Value<'a>> {
    match expr {
        Expr::Literal(value) => Some(lent(value)),
        Expr::Attribute(attribute, path) => attributes.get(*attribute, path),
        Expr::HasAttribute(attribute, path) => {
            let there = (path.is_empty() && attribute.is_map()) || attributes.get(*attribute, path).is_some();
            Some(Value::Bool(there))
        }
        Expr::Member(of, key) => evaluate(of, attributes)?.member(&evaluate(key, attributes)?),
        Expr::HasMember(of, key) => Some(Value::Bool(evaluate(of, attributes)?.member(&Value::text(&**key)).is_some())),
        Expr::Not(inner) => match evaluate(inner, attributes)? {
            Value::Bool(b) => Some(Value::Bool(!b)),
            _ => None,
        },
        Expr::Minus(inner) => match evaluate(inner, attributes)? {
            Value::Int(n) => n.checked_neg().map(Value::Int),
            Value::Double(n) => Some(Value::Double(-n)),
            Value::Duration(n) => Some(Value::Duration(-n)),
            _ => None,
        },
        Expr::And(all) => decided(all, attributes, false),
        Expr::Or(all) => decided(all, attributes, true),
        Expr::Choice(parts) => {
            let [condition, yes, no] = &**parts;
            match evaluate(condition, attributes)? {
                Value::Bool(true) => evaluate(yes, attributes),
                Value::Bool(false) => evaluate(no, attributes),
                _ => None,
            }
        }
        Expr::Binary(operator, both) => {
            let [left, right] = &**both;
            binary(*operator, evaluate(left, attributes)?, evaluate(right, attributes)?)
        }
        Expr::List(items) => items.iter().map(|e| evaluate(e, attributes)).collect::<Option<_>>().map(Value::List),
        Expr::Map(entries) => {
            let entry = |(k, v): &'a (Expr, Expr)| Some((evaluate(k, attributes)?, evaluate(v, attributes)?));
            entries.iter().map(entry).collect::<Option<_>>().map(Value::Map)
        }
        Expr::Call(function, arguments) => {
            let values = arguments.iter().map(|e| evaluate(e, attributes)).collect::<Option<Vec<_>>>()?;
            function.call(values)
        }
        Expr::Matches(text, regex) => match evaluate(text, attributes)? {
            Value::Text(text) => Some(Value::Bool(regex.is_match(&text))),
            _ => None,
        },
    }
}

/// A constant, its text borrowed from the expression.
fn lent<'a>(value: &'a Value<'static>) -> Value<'a> {
    match value {
        Value::Text(text) => Value::Text(Cow::Borrowed(text)),
        Value::Bytes(bytes) => Value::Bytes(Cow::Borrowed(bytes)),
        other => other.clone(),
    }
}

/// `||` (`by` true) and `&&` (`by` false): one part that decides is enough, whatever the others are.
fn decided<'a>(all: &'a [Expr], attributes: &'a dyn Attributes, by: bool) -> Option<Value<'a>> {
    let mut known = true;
    for part in all {
        match evaluate(part, attributes) {
            Some(Value::Bool(b)) if b == by => return Some(Value::Bool(by)),
            Some(Value::Bool(_)) => {}
            _ => known = false,
        }
    }
    known.then_some(Value::Bool(!by))
}

fn binary<'a>(operator: Binary, left: Value<'a>, right: Value<'a>) -> Option<Value<'a>> {
    let truth = |t: bool| Some(Value::Bool(t));
    match operator {
        Binary::Eq => truth(left == right),
        Binary::Ne => truth(left != right),
        Binary::Lt => truth(left.order(&right)? == Ordering::Less),
        Binary::Le => truth(left.order(&right)? != Ordering::Greater),
        Binary::Gt => truth(left.order(&right)? == Ordering::Greater),
        Binary::Ge => truth(left.order(&right)? != Ordering::Less),
        Binary::In => right.holds(&left).map(Value::Bool),
        Binary::Add => match left {
            Value::Text(_) | Value::Bytes(_) | Value::List(_) => None,
            _ => add(left, right),
        },
        Binary::Join => add(left, right),
        Binary::Sub => subtract(&left, &right),
        Binary::Mul | Binary::Div | Binary::Rem => product(operator, &left, &right),
    }
}

fn add<'a>(left: Value<'a>, right: Value<'a>) -> Option<Value<'a>> {
    use Value as V;
    Some(match (left, right) {
        (V::Int(a), V::Int(b)) => V::Int(a.checked_add(b)?),
        (V::Uint(a), V::Uint(b)) => V::Uint(a.checked_add(b)?),
        (V::Double(a), V::Double(b)) => V::Double(a + b),
        (V::Text(a), V::Text(b)) => V::Text(Cow::Owned(a.into_owned() + &b)),
        (V::Bytes(a), V::Bytes(b)) => V::Bytes(Cow::Owned([a.as_ref(), b.as_ref()].concat())),
        (V::Duration(a), V::Duration(b)) => V::Duration(a.checked_add(b)?),
        (V::Timestamp(a), V::Duration(b)) | (V::Duration(b), V::Timestamp(a)) => V::Timestamp(a.checked_add(b)?),
        (V::List(mut a), V::List(b)) => {
            a.extend(b);
            V::List(a)
        }
        _ => return None,
    })
}

fn subtract<'a>(left: &Value<'a>, right: &Value<'a>) -> Option<Value<'a>> {
    use Value as V;
    Some(match (left, right) {
        (V::Int(a), V::Int(b)) => V::Int(a.checked_sub(*b)?),
        (V::Uint(a), V::Uint(b)) => V::Uint(a.checked_sub(*b)?),
        (V::Double(a), V::Double(b)) => V::Double(a - b),
        (V::Duration(a), V::Duration(b)) | (V::Timestamp(a), V::Timestamp(b)) => V::Duration(a.checked_sub(*b)?),
        (V::Timestamp(a), V::Duration(b)) => V::Timestamp(a.checked_sub(*b)?),
        _ => return None,
    })
}

fn product<'a>(operator: Binary, left: &Value<'a>, right: &Value<'a>) -> Option<Value<'a>> {
    use Value as V;
    Some(match (operator, left, right) {
        (Binary::Mul, V::Int(a), V::Int(b)) => V::Int(a.checked_mul(*b)?),
        (Binary::Div, V::Int(a), V::Int(b)) => V::Int(a.checked_div(*b)?),
        (Binary::Rem, V::Int(a), V::Int(b)) => V::Int(a.checked_rem(*b)?),
        (Binary::Mul, V::Uint(a), V::Uint(b)) => V::Uint(a.checked_mul(*b)?),
        (Binary::Div, V::Uint(a), V::Uint(b)) => V::Uint(a.checked_div(*b)?),
        (Binary::Rem, V::Uint(a), V::Uint(b)) => V::Uint(a.checked_rem(*b)?),
        (Binary::Mul, V::Double(a), V::Double(b)) => V::Double(a * b),
        (Binary::Div, V::Double(a), V::Double(b)) => V::Double(a / b),
        _ => return None,
    })
}
