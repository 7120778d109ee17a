//! The Lua that scripts run in: their globals, which they cannot change, and errors as Redis raises
//! them.

use std::{cell::RefCell, fmt, rc::Rc};

use mlua::{Function, Lua, LuaOptions, MultiValue, StdLib, Table, Value};
use sha1_smol::Sha1;

use super::{
    Run,
    convert::{argument, to_lua},
};
use crate::redis::{
    commands::{self, Access},
    resp::{Reply, Text},
    state::State,
};

/// The builtins that a script sees. `math.random` is not among them: it would have to be Redis' own.
const BUILTINS: [&str; 21] = [
    "assert",
    "error",
    "getfenv",
    "getmetatable",
    "ipairs",
    "loadstring",
    "next",
    "pairs",
    "rawequal",
    "rawget",
    "rawset",
    "select",
    "setfenv",
    "setmetatable",
    "tonumber",
    "tostring",
    "type",
    "unpack",
    "xpcall",
    "_VERSION",
    "coroutine",
];

const LIBRARIES: [&str; 3] = ["string", "table", "math"];

/// The interpreter, and what is needed to run a script in it.
pub(super) struct Sandbox {
    pub(super) lua: Lua,
    /// What scripts see as their globals.
    pub(super) environment: Table,
    /// Holds what scripts find in their environment, `KEYS` and `ARGV` among it.
    pub(super) globals: Table,
    /// Calls a script; returns whether it succeeded, and its result or a table with its error.
    pub(super) protected: Function,
}

/// An error on its way through Lua, from a function of this sandbox.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise<T>(message: impl Into<String>) -> mlua::Result<T> {
    Err(mlua::Error::external(Raised(message.into())))
}

impl Sandbox {
    pub(super) fn new(state: &Rc<RefCell<State>>, run: &Rc<RefCell<Run>>) -> mlua::Result<Self> {
        let libraries = StdLib::STRING | StdLib::TABLE | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        let (all, globals) = (lua.globals(), lua.create_table()?);
        for name in BUILTINS {
            globals.raw_set(name, all.raw_get::<Value>(name)?)?;
        }
        for name in LIBRARIES {
            let library: Table = all.raw_get(name)?;
            library.raw_set("random", Value::Nil)?;
            library.raw_set("randomseed", Value::Nil)?;
            globals.raw_set(name, read_only(&lua, &library)?)?;
        }
        globals.raw_set("pcall", pcall(&lua)?)?;
        globals.raw_set("redis", read_only(&lua, &redis(&lua, state, run)?)?)?;
        let environment = read_only(&lua, &globals)?;
        globals.raw_set("_G", &environment)?;
        let missing = lua.create_table()?;
        missing.raw_set("__index", lua.create_function(missing_global)?)?;
        globals.set_metatable(Some(missing))?;
        let handler = lua.create_function(handle)?;
        let protected = lua
            .load("local handler = ... return function(script) return xpcall(script, handler) end")
            .set_name("=sandbox")
            .call(handler)?;
        Ok(Self { lua, environment, globals, protected })
    }
}

/// A table through which another one can be read and not written.
fn read_only(lua: &Lua, table: &Table) -> mlua::Result<Table> {
    let (proxy, meta) = (lua.create_table()?, lua.create_table()?);
    meta.raw_set("__index", table)?;
    let refuse = |lua: &Lua, _: MultiValue| -> mlua::Result<()> {
        raise(format!("{}Attempt to modify a readonly table", place(lua)))
    };
    meta.raw_set("__newindex", lua.create_function(refuse)?)?;
    proxy.set_metatable(Some(meta))?;
    Ok(proxy)
}

fn missing_global(lua: &Lua, (_, name): (Value, Value)) -> mlua::Result<Value> {
    let name = name.to_string()?;
    let place = place(lua);
    raise(format!("{place}Script attempted to access nonexistent global variable '{name}'"))
}

/// Where the running function was called, as Lua puts it before a message.
fn place(lua: &Lua) -> String {
    let place = |debug: &mlua::debug::Debug<'_>| {
        let line = debug.current_line()?;
        Some(format!("{}:{line}: ", debug.source().short_src?))
    };
    lua.inspect_stack(1, place).flatten().unwrap_or_default()
}

/// The message of an error that was raised here, or is a table as Redis has it.
fn message_of(error: &Value) -> Option<String> {
    match error {
        Value::Error(error) => Some(match error.downcast_ref::<Raised>() {
            Some(raised) => raised.0.clone(),
            None => error.to_string(),
        }),
        Value::Table(table) => match table.raw_get("err") {
            Ok(Value::String(message)) => Some(message.to_string_lossy()),
            _ => None,
        },
        _ => None,
    }
}

/// Redis' own `pcall` gives the message in place of the table (src/script_lua.c, `luaRedisPcall`).
fn pcall(lua: &Lua) -> mlua::Result<Function> {
    let told = lua.create_function(|lua, mut results: MultiValue| {
        if let Some(Value::Boolean(false)) = results.front()
            && let Some(message) = results.get(1).and_then(message_of)
        {
            results[1] = Value::String(lua.create_string(message)?);
        }
        Ok(results)
    })?;
    lua.load("local told, pcall = ..., pcall return function(...) return told(pcall(...)) end")
        .set_name("=sandbox")
        .call(told)
}

/// Makes the table of an error that no script has caught (src/eval.c, `__redis__err__handler`).
fn handle(lua: &Lua, error: Value) -> mlua::Result<Table> {
    let at = |level| {
        let found = |debug: &mlua::debug::Debug<'_>| {
            let source = debug.source();
            let name = source.source.unwrap_or_default().into_owned();
            (source.what == "C", name, debug.current_line())
        };
        lua.inspect_stack(level, found)
    };
    let place = match at(1) {
        Some((true, ..)) => at(2),
        place => place,
    };
    let table = match (&error, message_of(&error)) {
        (Value::Table(table), _) => table.clone(),
        (Value::Error(_), Some(message)) => {
            let table = lua.create_table()?;
            // Redis raises a table from its functions, and Lua itself a text without a code.
            let has_code = !message.starts_with("user_script:");
            table.raw_set("err", if has_code { message } else { format!("ERR {message}") })?;
            table
        }
        _ => {
            let table = lua.create_table()?;
            table.raw_set("err", format!("ERR {}", error.to_string()?))?;
            table
        }
    };
    if let Some((_, source, line)) = place {
        table.raw_set("source", source)?;
        table.raw_set("line", line.map_or(-1, |line| line as i64))?;
    }
    Ok(table)
}

/// The table `redis`.
fn redis(lua: &Lua, state: &Rc<RefCell<State>>, run: &Rc<RefCell<Run>>) -> mlua::Result<Table> {
    let redis = lua.create_table()?;
    for (name, raises) in [("call", true), ("pcall", false)] {
        let (state, run) = (Rc::clone(state), Rc::clone(run));
        let function = move |lua: &Lua, arguments: MultiValue| {
            let reply = call(&state, &run, &arguments);
            match reply {
                Reply::Error(message) if raises => raise(message),
                reply => to_lua(lua, &reply),
            }
        };
        redis.raw_set(name, lua.create_function(function)?)?;
    }
    let sha1 =
        |_: &Lua, text: mlua::LuaString| Ok(Sha1::from(&*text.as_bytes()).digest().to_string());
    redis.raw_set("sha1hex", lua.create_function(sha1)?)?;
    let error = |lua: &Lua, text: mlua::LuaString| {
        let table = lua.create_table()?;
        table.raw_set("err", error_reply(&text.to_string_lossy()))?;
        Ok(table)
    };
    redis.raw_set("error_reply", lua.create_function(error)?)?;
    let status = |lua: &Lua, text: mlua::LuaString| {
        let table = lua.create_table()?;
        table.raw_set("ok", text)?;
        Ok(table)
    };
    redis.raw_set("status_reply", lua.create_function(status)?)?;
    redis.raw_set("log", lua.create_function(|_, _: MultiValue| Ok(()))?)?;
    for (level, name) in
        ["LOG_DEBUG", "LOG_VERBOSE", "LOG_NOTICE", "LOG_WARNING"].iter().enumerate()
    {
        redis.raw_set(*name, level)?;
    }
    Ok(redis)
}

/// With a code before the message (src/script_lua.c, `luaPushErrorBuff`).
fn error_reply(text: &str) -> String {
    let text = text.strip_prefix('-').unwrap_or(text);
    if text.contains(' ') { text.to_owned() } else { format!("ERR {text}") }
}

/// Runs a command of a script (src/script.c, `scriptCall`).
fn call(state: &RefCell<State>, run: &RefCell<Run>, arguments: &MultiValue) -> Reply {
    let (mut state, mut run) = (state.borrow_mut(), run.borrow_mut());
    if arguments.is_empty() {
        return Reply::error("ERR Please specify at least one argument for this redis lib call");
    }
    let Some(words) = arguments.iter().map(argument).collect::<Option<Vec<Text>>>() else {
        return Reply::error("ERR Lua redis lib command arguments must be strings or integers");
    };
    let Some(command) = commands::find(&words[0]) else {
        return Reply::error(match crate::redis::session::is_command(&words[0]) {
            true => "ERR This Redis command is not allowed from script",
            false => "ERR Unknown Redis command called from script",
        });
    };
    if !command.takes(words.len()) {
        return Reply::error("ERR Wrong number of args calling Redis command from script");
    }
    if run.is_read_only && command.access != Access::Reads {
        return Reply::error("ERR Write commands are not allowed from read-only scripts.");
    }
    let is_refused = command.access == Access::Grows && !run.allows_oom && !run.has_written;
    if is_refused && run.was_out_of_memory {
        return Reply::error("OOM command not allowed when used memory > 'maxmemory'.");
    }
    run.has_written |= matches!(command.access, Access::Writes | Access::Grows);
    (command.run)(&mut state, &words).unwrap_or_else(|error| error)
}
