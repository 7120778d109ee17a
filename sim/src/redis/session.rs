//! Commands of a connection: what it speaks, what it has subscribed to, which scripts it runs.

use crate::redis::{
    commands::{self, Access, fits},
    number::integer,
    resp::{Parser, Reply, Text},
    script::Engine,
    server::ConnId,
    state::{Kind, State},
};

/// An open connection.
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) parser: Parser,
    pub(crate) is_resp3: bool,
    pub(crate) is_closing: bool,
    name: Option<Text>,
}

/// The version that this server claims to be, and whose messages it has.
const VERSION: &str = "7.0.15";

/// What a command of a connection works on.
pub(crate) struct Context<'a> {
    pub(crate) id: ConnId,
    pub(crate) session: &'a mut Session,
    pub(crate) engine: &'a mut Engine,
    pub(crate) state: &'a std::cell::RefCell<State>,
}

/// Gives the reply, or `None` where the command has sent what there is to send.
type Run = fn(&mut Context<'_>, &[Text]) -> Option<Reply>;

/// Names, arities, and functions.
const COMMANDS: &[(&str, i32, Run)] = &[
    ("hello", -1, |context, args| Some(hello(context, args))),
    ("select", 2, |_, args| {
        Some(match integer(&args[1]) {
            Some(0) => Reply::ok(),
            Some(_) => Reply::error("ERR DB index is out of range"),
            None => Reply::error("ERR value is not an integer or out of range"),
        })
    }),
    ("quit", -1, |context, _| {
        context.session.is_closing = true;
        Some(Reply::ok())
    }),
    ("client", -2, |context, args| Some(client(context, args))),
    ("info", -1, |context, _| Some(info(&context.state.borrow()))),
    ("wait", 3, |context, args| Some(wait(&context.state.borrow(), args))),
    ("script", -2, |context, args| Some(script(context.engine, args))),
    ("eval", -3, |context, args| Some(context.engine.evaluate(args, false, false))),
    ("eval_ro", -3, |context, args| Some(context.engine.evaluate(args, false, true))),
    ("evalsha", -3, |context, args| Some(context.engine.evaluate(args, true, false))),
    ("evalsha_ro", -3, |context, args| Some(context.engine.evaluate(args, true, true))),
    ("subscribe", -2, |context, args| subscribe(context, args, Kind::Plain)),
    ("ssubscribe", -2, |context, args| subscribe(context, args, Kind::Sharded)),
    ("unsubscribe", -1, |context, args| unsubscribe(context, args, Kind::Plain)),
    ("sunsubscribe", -1, |context, args| unsubscribe(context, args, Kind::Sharded)),
];

/// Whether there is such a command of a connection, in any case of letters.
pub(crate) fn is_command(name: &[u8]) -> bool {
    find(name).is_some()
}

fn find(name: &[u8]) -> Option<&'static (&'static str, i32, Run)> {
    COMMANDS.iter().find(|(known, ..)| known.as_bytes().eq_ignore_ascii_case(name))
}

/// Runs a command; what it replies is put among what is to be sent.
pub(crate) fn run(context: &mut Context<'_>, args: &[Text]) {
    let reply = match (commands::find(&args[0]), find(&args[0])) {
        (Some(command), _) if !command.takes(args.len()) => Some(wrong_arity(command.name)),
        (_, Some((name, arity, _))) if !fits(*arity, args.len()) => Some(wrong_arity(name)),
        (None, None) => Some(unknown(args)),
        (Some(command), _) if command.name == "ping" && is_listening(context) => {
            let message = args.get(1).map_or_else(|| Reply::bulk(""), Reply::bulk);
            Some(Reply::Array(vec![Reply::bulk("pong"), message]))
        }
        (command, other) => match refused(context, args, command.map(|command| command.access)) {
            Some(error) => Some(error),
            None => match (command, other) {
                (Some(command), _) => {
                    let reply = (command.run)(&mut context.state.borrow_mut(), args);
                    Some(reply.unwrap_or_else(|error| error))
                }
                (None, Some((_, _, run))) => run(context, args),
                (None, None) => None,
            },
        },
    };
    let mut state = context.state.borrow_mut();
    if let Some(reply) = reply {
        state.out.push((context.id, reply));
    }
    state.data.commit();
}

fn wrong_arity(name: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

fn unknown(args: &[Text]) -> Reply {
    let name = String::from_utf8_lossy(&args[0]).chars().take(128).collect::<String>();
    let mut begin = String::new();
    for word in &args[1..] {
        if begin.len() >= 128 {
            break;
        }
        let left = 128 - begin.len();
        let word: String = String::from_utf8_lossy(word).chars().take(left).collect();
        begin.push_str(&format!("'{word}' "));
    }
    Reply::error(format!("ERR unknown command '{name}', with args beginning with: {begin}"))
}

/// Why a command may not run now (src/server.c, `processCommand`).
fn refused(context: &Context<'_>, args: &[Text], access: Option<Access>) -> Option<Reply> {
    let name = String::from_utf8_lossy(&args[0]).to_lowercase();
    let state = context.state.borrow();
    let needs_memory = match (access, &*name) {
        (Some(access), _) => access == Access::Grows,
        (None, "eval" | "evalsha" | "eval_ro" | "evalsha_ro") => {
            let flags = context.engine.flags_of(&args[1], name.starts_with("evalsha"));
            flags.is_some_and(|flags| flags.needs_memory())
        }
        (None, _) => false,
    };
    if needs_memory && state.is_out_of_memory() {
        return Some(Reply::error("OOM command not allowed when used memory > 'maxmemory'."));
    }
    let is_allowed = name.ends_with("subscribe") || matches!(&*name, "ping" | "quit");
    drop(state);
    if !is_allowed && is_listening(context) {
        return Some(Reply::error(format!(
            "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / \
             RESET are allowed in this context"
        )));
    }
    None
}

/// Whether the connection is in the mode of RESP2 in which replies would be mixed with messages.
fn is_listening(context: &Context<'_>) -> bool {
    let state = context.state.borrow();
    let listens = |kind| !state.channels.channels_of(kind, context.id).is_empty();
    !context.session.is_resp3 && (listens(Kind::Plain) || listens(Kind::Sharded))
}

fn hello(context: &mut Context<'_>, args: &[Text]) -> Reply {
    if let Some(version) = args.get(1) {
        match integer(version) {
            Some(version @ 2..=3) => context.session.is_resp3 = version == 3,
            Some(_) => return Reply::error("NOPROTO unsupported protocol version"),
            None => {
                let message = "ERR Protocol version is not an integer or out of range";
                return Reply::error(message);
            }
        }
    }
    // Without a password in its configuration, Redis takes any.
    let text = |text: &str| Reply::bulk(text);
    Reply::Map(vec![
        text("server"),
        text("redis"),
        text("version"),
        text(VERSION),
        text("proto"),
        Reply::Integer(if context.session.is_resp3 { 3 } else { 2 }),
        text("id"),
        Reply::Integer(context.id.number()),
        text("mode"),
        text("standalone"),
        text("role"),
        text("master"),
        text("modules"),
        Reply::Array(Vec::new()),
    ])
}

fn client(context: &mut Context<'_>, args: &[Text]) -> Reply {
    let word = String::from_utf8_lossy(&args[1]).into_owned();
    match (&*word.to_lowercase(), &args[2..]) {
        ("id", []) => Reply::Integer(context.id.number()),
        ("getname", []) => Reply::or_null(context.session.name.as_ref()),
        ("setname", [name]) => {
            context.session.name = Some(name.clone());
            Reply::ok()
        }
        // `SETINFO` is newer than this version.
        _ => Reply::error(format!("ERR unknown subcommand '{word}'. Try CLIENT HELP.")),
    }
}

fn info(state: &State) -> Reply {
    let maxmemory = state.maxmemory.unwrap_or(0);
    Reply::Verbatim(format!(
        "# Server\r\nredis_version:{VERSION}\r\nredis_mode:standalone\r\n\r\n\
         # Memory\r\nmaxmemory:{maxmemory}\r\nmaxmemory_policy:noeviction\r\n\r\n\
         # Replication\r\nrole:master\r\nconnected_slaves:{}\r\n",
        state.replicas
    ))
}

fn wait(state: &State, args: &[Text]) -> Reply {
    match (integer(&args[1]), integer(&args[2])) {
        (None, _) => Reply::error("ERR value is not an integer or out of range"),
        (_, None) => Reply::error("ERR timeout is not an integer or out of range"),
        (_, Some(i64::MIN..=-1)) => Reply::error("ERR timeout is negative"),
        _ => Reply::Integer(state.replicas.into()),
    }
}

fn script(engine: &mut Engine, args: &[Text]) -> Reply {
    let word = String::from_utf8_lossy(&args[1]).into_owned();
    match (&*word.to_lowercase(), &args[2..]) {
        ("load", [script]) => engine.load(script).map_or_else(|error| error, Reply::bulk),
        ("exists", shas @ [_, ..]) => {
            let each = shas.iter().map(|sha| Reply::Integer(engine.knows(sha).into()));
            Reply::Array(each.collect())
        }
        ("flush", [] | [_]) => {
            engine.forget();
            Reply::ok()
        }
        ("load" | "exists", _) => wrong_arity(&format!("script|{}", word.to_lowercase())),
        _ => Reply::error(format!("ERR unknown subcommand '{word}'. Try SCRIPT HELP.")),
    }
}

/// One message for each channel, each with the number of channels that the connection has then.
fn subscribe(context: &mut Context<'_>, args: &[Text], kind: Kind) -> Option<Reply> {
    let mut state = context.state.borrow_mut();
    for channel in &args[1..] {
        state.channels.subscribe(kind, channel, context.id);
        tell(&mut state, context.id, kind, "subscribe", Reply::bulk(channel));
    }
    None
}

fn unsubscribe(context: &mut Context<'_>, args: &[Text], kind: Kind) -> Option<Reply> {
    let mut state = context.state.borrow_mut();
    let all = match &args[1..] {
        [] => state.channels.channels_of(kind, context.id),
        some => some.to_vec(),
    };
    for channel in &all {
        state.channels.unsubscribe(kind, channel, context.id);
        tell(&mut state, context.id, kind, "unsubscribe", Reply::bulk(channel));
    }
    if all.is_empty() {
        tell(&mut state, context.id, kind, "unsubscribe", Reply::Null);
    }
    None
}

fn tell(state: &mut State, id: ConnId, kind: Kind, what: &str, channel: Reply) {
    let letter = if kind == Kind::Sharded { "s" } else { "" };
    let count = Reply::len(state.channels.channels_of(kind, id).len());
    state.out.push((id, Reply::Push(vec![Reply::bulk(format!("{letter}{what}")), channel, count])));
}
