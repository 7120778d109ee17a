//! Scripts: Lua that runs commands as one step.

mod convert;
mod flags;
mod sandbox;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    rc::Rc,
};

use mlua::{
    Function, HookTriggers, MultiValue, Table, Value, VmState,
    chunk::ChunkMode,
    state::{GcIncParams, GcMode},
};

use sha1_smol::Sha1;

pub(crate) use self::flags::Flags;
use self::{convert::to_reply, sandbox::Sandbox};
use crate::redis::{
    number::integer,
    resp::{Reply, Text},
    state::State,
};

/// What is known of the script that runs.
#[derive(Debug, Default)]
pub(crate) struct Run {
    sha: String,
    is_read_only: bool,
    allows_oom: bool,
    was_out_of_memory: bool,
    has_written: bool,
}

/// The lines that ran, by the SHA of their script.
pub(crate) type Lines = BTreeMap<String, BTreeSet<usize>>;

type Filter = Box<dyn Fn(&str) -> String>;

/// The interpreter, and the scripts that were loaded.
pub(crate) struct Engine {
    sandbox: Sandbox,
    state: Rc<RefCell<State>>,
    run: Rc<RefCell<Run>>,
    /// All that were ever compiled.
    compiled: BTreeMap<String, (Flags, Function)>,
    /// Those that the server knows.
    loaded: BTreeSet<String>,
    filter: Option<Filter>,
    lines: Rc<RefCell<Lines>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("loaded", &self.loaded).finish_non_exhaustive()
    }
}

impl Engine {
    /// # Panics
    /// If there is no memory for an interpreter.
    pub(crate) fn new(state: &Rc<RefCell<State>>) -> Self {
        let run = Rc::<RefCell<Run>>::default();
        let sandbox = Sandbox::new(state, &run).expect("the sandbox's own Lua runs");
        // Each call leaves garbage of some kilobytes, and little stays: to collect it less often is
        // cheaper.
        let params = GcIncParams::default().pause(1000).step_multiplier(1000);
        sandbox.lua.gc_set_mode(GcMode::Incremental(params));
        Self {
            sandbox,
            state: Rc::clone(state),
            run,
            compiled: BTreeMap::new(),
            loaded: BTreeSet::new(),
            filter: None,
            lines: Rc::default(),
        }
    }

    pub(crate) fn set_filter(&mut self, filter: Filter) {
        self.filter = Some(filter);
        self.compiled.clear();
        self.loaded.clear();
    }

    pub(crate) fn count_lines(&mut self) {
        let (lines, run) = (Rc::clone(&self.lines), Rc::clone(&self.run));
        let hook = move |_: &mlua::Lua, debug: &mlua::debug::Debug<'_>| {
            if let (Some(line), Some("@user_script")) =
                (debug.current_line(), debug.source().source.as_deref())
            {
                let sha = run.borrow().sha.clone();
                lines.borrow_mut().entry(sha).or_default().insert(line);
            }
            Ok(VmState::Continue)
        };
        self.sandbox.lua.set_hook(HookTriggers::EVERY_LINE, hook).expect("Lua 5.1 has hooks");
    }

    pub(crate) fn lines(&self) -> Lines {
        self.lines.borrow().clone()
    }

    pub(crate) fn forget(&mut self) {
        self.loaded.clear();
    }

    pub(crate) fn knows(&self, sha: &[u8]) -> bool {
        self.loaded.contains(&String::from_utf8_lossy(sha).to_lowercase())
    }

    /// The flags of the script that `EVAL` or `EVALSHA` names, if they are known before it runs.
    pub(crate) fn flags_of(&self, script: &[u8], is_sha: bool) -> Option<Flags> {
        if !is_sha {
            return Flags::parse(&String::from_utf8_lossy(script)).ok().map(|(flags, _)| flags);
        }
        let sha = String::from_utf8_lossy(script).to_lowercase();
        self.compiled.get(&sha).filter(|_| self.loaded.contains(&sha)).map(|(flags, _)| *flags)
    }

    /// Loads a script; returns its SHA.
    pub(crate) fn load(&mut self, script: &[u8]) -> Result<String, Reply> {
        let sha = Sha1::from(script).digest().to_string();
        if !self.compiled.contains_key(&sha) {
            let compiled = self.compile(script)?;
            self.compiled.insert(sha.clone(), compiled);
        }
        self.loaded.insert(sha.clone());
        Ok(sha)
    }

    fn compile(&self, script: &[u8]) -> Result<(Flags, Function), Reply> {
        let text = String::from_utf8_lossy(script);
        let text = match &self.filter {
            Some(filter) => filter(&text),
            None => text.into_owned(),
        };
        let wrong = |message| Reply::error(format!("ERR {message}"));
        let (flags, code) = Flags::parse(&text).map_err(wrong)?;
        let chunk = self.sandbox.lua.load(code).set_name("@user_script").set_mode(ChunkMode::Text);
        let function = chunk.set_environment(self.sandbox.environment.clone()).into_function();
        let function = function.map_err(|error| {
            let message = match error {
                mlua::Error::SyntaxError { message, .. } => message,
                error => error.to_string(),
            };
            wrong(format!("Error compiling script (new function): {message}"))
        })?;
        Ok((flags, function))
    }

    /// Runs `EVAL` or `EVALSHA` with these arguments.
    pub(crate) fn evaluate(&mut self, args: &[Text], is_sha: bool, is_read_only: bool) -> Reply {
        match self.prepared(args, is_sha, is_read_only) {
            Ok((function, keys)) => {
                let (keys, values) = args[3..].split_at(keys);
                self.call(&function, keys, values).unwrap_or_else(|error| {
                    Reply::error(format!("ERR Error running script: {error}"))
                })
            }
            Err(error) => error,
        }
    }

    /// Finds the script, and notes how it runs; returns the number of its keys too.
    fn prepared(
        &mut self,
        args: &[Text],
        is_sha: bool,
        is_read_only: bool,
    ) -> Result<(Function, usize), Reply> {
        let wrong = |message: &str| Err(Reply::error(format!("ERR {message}")));
        let Some(keys) = integer(&args[2]) else {
            return wrong("value is not an integer or out of range");
        };
        if keys > args.len() as i64 - 3 {
            return wrong("Number of keys can't be greater than number of args");
        }
        let Ok(keys) = usize::try_from(keys) else {
            return wrong("Number of keys can't be negative");
        };
        let sha = match is_sha {
            true if self.knows(&args[1]) => String::from_utf8_lossy(&args[1]).to_lowercase(),
            true => return Err(Reply::error("NOSCRIPT No matching script. Please use EVAL.")),
            false => self.load(&args[1])?,
        };
        let (flags, function) = &self.compiled[&sha];
        if is_read_only && !flags.is_plain && !flags.no_writes {
            return wrong("Can not execute a script with write flag using *_ro command.");
        }
        let mut run = self.run.borrow_mut();
        run.sha = sha;
        run.is_read_only = is_read_only || flags.no_writes;
        run.allows_oom = flags.allow_oom;
        run.was_out_of_memory = self.state.borrow().is_out_of_memory();
        run.has_written = false;
        Ok((function.clone(), keys))
    }

    fn call(&self, script: &Function, keys: &[Text], values: &[Text]) -> mlua::Result<Reply> {
        let lua = &self.sandbox.lua;
        for (name, texts) in [("KEYS", keys), ("ARGV", values)] {
            let table = lua.create_table_with_capacity(texts.len(), 0)?;
            for (at, text) in texts.iter().enumerate() {
                table.raw_set(at + 1, lua.create_string(text)?)?;
            }
            self.sandbox.globals.raw_set(name, table)?;
        }
        let mut results: MultiValue = self.sandbox.protected.call(script)?;
        let succeeded = matches!(results.pop_front(), Some(Value::Boolean(true)));
        let result = results.pop_front().unwrap_or(Value::Nil);
        match result {
            Value::Table(error) if !succeeded => self.failed(&error),
            result => Ok(to_reply(&result)),
        }
    }

    /// The reply to a script that has failed (src/script_lua.c, `luaCallFunction`).
    fn failed(&self, error: &Table) -> mlua::Result<Reply> {
        let message = match error.raw_get::<Value>("err")? {
            Value::String(message) => message.to_string_lossy(),
            _ => "(null)".to_owned(),
        };
        let (source, line): (Option<String>, Option<i64>) =
            (error.raw_get("source")?, error.raw_get("line")?);
        let sha = &self.run.borrow().sha;
        Ok(Reply::error(match (source, line) {
            (Some(source), Some(line)) => {
                format!("{message} script: {sha}, on {source}:{line}.")
            }
            _ => message,
        }))
    }
}
