//! Values between Redis and Lua, as Redis 7.0 converts them (src/script_lua.c). A script speaks RESP2.

use mlua::{Lua, Table, Value};

use crate::redis::{
    number::{g17, truncated},
    resp::{Reply, Text},
};

/// Converts the reply to `redis.call` (`redisProtocolToLuaType`).
pub(super) fn to_lua(lua: &Lua, reply: &Reply) -> mlua::Result<Value> {
    let text = |bytes: &[u8]| lua.create_string(bytes).map(Value::String);
    let field = |name: &str, value: &str| {
        let table = lua.create_table_with_capacity(0, 1)?;
        table.raw_set(name, value)?;
        Ok(Value::Table(table))
    };
    match reply {
        Reply::Status(status) => field("ok", status),
        Reply::Error(message) => field("err", message),
        Reply::Integer(number) => Ok(Value::Number(*number as f64)),
        Reply::Bulk(bytes) => text(bytes),
        Reply::Verbatim(bytes) => text(bytes.as_bytes()),
        Reply::Double(number) => text(g17(*number).as_bytes()),
        Reply::Null | Reply::NullArray => Ok(Value::Boolean(false)),
        Reply::Array(all) | Reply::Set(all) | Reply::Map(all) | Reply::Push(all) => {
            let table = lua.create_table_with_capacity(all.len(), 0)?;
            for (at, reply) in all.iter().enumerate() {
                table.raw_set(at + 1, to_lua(lua, reply)?)?;
            }
            Ok(Value::Table(table))
        }
        Reply::Scored(all) => {
            let table = lua.create_table_with_capacity(all.len() * 2, 0)?;
            for (member, score) in all {
                table.raw_push(text(member)?)?;
                table.raw_push(text(g17(*score).as_bytes())?)?;
            }
            Ok(Value::Table(table))
        }
    }
}

/// How deep a table may lie in others; a script can make one that holds itself.
const DEEPEST: usize = 256;

/// Converts what a script returns (`luaReplyToRedisReply`).
pub(super) fn to_reply(value: &Value) -> Reply {
    within(value, DEEPEST)
}

fn within(value: &Value, depth: usize) -> Reply {
    if depth == 0 {
        return Reply::error("ERR reached lua stack limit");
    }
    match value {
        Value::String(text) => Reply::bulk(text.as_bytes()),
        Value::Boolean(true) => Reply::Integer(1),
        Value::Boolean(false) => Reply::Null,
        Value::Integer(number) => Reply::Integer(*number),
        Value::Number(number) => Reply::Integer(truncated(*number)),
        Value::Table(table) => of_table(table, depth),
        _ => Reply::Null,
    }
}

fn of_table(table: &Table, depth: usize) -> Reply {
    let field = |name| table.raw_get::<Value>(name).unwrap_or(Value::Nil);
    if let Value::String(message) = field("err") {
        return Reply::error(message.to_string_lossy());
    }
    if let Value::String(status) = field("ok") {
        return Reply::Status(status.to_string_lossy());
    }
    match field("double") {
        Value::Integer(number) => return Reply::Double(number as f64),
        Value::Number(number) => return Reply::Double(number),
        _ => {}
    }
    let mut all = Vec::new();
    // The first nil ends it.
    for at in 1.. {
        match table.raw_get::<Value>(at).unwrap_or(Value::Nil) {
            Value::Nil => break,
            value => all.push(within(&value, depth - 1)),
        }
    }
    Reply::Array(all)
}

/// Converts an argument of `redis.call` (`luaArgsToRedisArgv`); `None` for what cannot be one.
pub(super) fn argument(value: &Value) -> Option<Text> {
    match value {
        Value::String(text) => Some(Text::from(&*text.as_bytes())),
        Value::Integer(number) => Some(g17(*number as f64).as_bytes().into()),
        Value::Number(number) => Some(g17(*number).as_bytes().into()),
        _ => None,
    }
}
