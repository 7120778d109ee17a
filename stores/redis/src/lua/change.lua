-- Applies a change to a job, if its status allows it: the table of transitions that is drawn in
-- tower-offload (src/job/record.rs).
-- KEYS: job, outcome, index, counts, and where chunks of an outcome were put, if they were.
-- ARGV: the job's id, the command and channel to tell of it, the change, then what it brings:
--   start; progress, PROGRESS; response, STATUS, HTTP STATUS, BYTES, OUTCOME or nothing;
--   failure, FAILURE; cancel; remove.
-- Gives {} if there is no such job, or {whether it was applied, record}.
local job, outcome, index, counts, chunks = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, command, channel, change = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = redis.call('HMGET', job, 's', 'v', 'b', 'c', 't', 'e', 'x', 'k', 'p', 'n')
local status, version, began, created, ttl, finished, removed, claim, policy, bytes = unpack(found)
if not status then
  return {}
end
local queued, running = status == '"queued"', status == '"running"'
local open = queued or running

local allowed = open
if change == 'start' then
  allowed = queued
elseif change == 'progress' then
  allowed = running
elseif change == 'remove' then
  allowed = not open and not removed
end
if not allowed then
  return {0, redis.call('HGETALL', job)}
end

-- The clock can be set back; what was promised must not move earlier with it.
local at = later(now(), began or created)
local fields = {}
local function set(name, value)
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
local ended = true
if change == 'start' then
  set('s', '"running"')
  set('b', at)
  ended = false
elseif change == 'progress' then
  set('g', ARGV[5])
  ended = false
elseif change == 'response' then
  set('s', ARGV[5])
  set('h', ARGV[6])
elseif change == 'failure' then
  set('s', '"failed"')
  set('f', ARGV[5])
elseif change == 'cancel' then
  set('s', '"canceled"')
elseif change == 'remove' then
  set('x', 'true')
  ended = false
end
version = math.min(tonumber(version) + 1, 4294967295)
set('v', version)
if change ~= 'progress' then
  set('w', version)
end

policy, bytes = policy or '', bytes or '0'
if change == 'remove' then
  redis.call('DEL', outcome)
  redis.call('HDEL', job, 'n')
  if tonumber(bytes) > 0 then
    redis.call('HINCRBY', counts, 'b' .. policy, -bytes)
  end
  local expires = redis.call('ZSCORE', index, entry(id, policy, bytes))
  redis.call('ZREM', index, entry(id, policy, bytes))
  if expires then
    redis.call('ZADD', index, expires, entry(id, policy, 0))
  end
end
if ended then
  set('e', at)
  local expires = milliseconds(at, ttl)
  if change == 'response' then
    -- First, since it fails where the chunks are gone: then nothing was changed.
    if chunks then
      redis.call('RENAME', chunks, outcome)
    else
      redis.call('SET', outcome, ARGV[8])
    end
    bytes = ARGV[7]
    set('n', bytes)
    redis.call('HINCRBY', counts, 'b' .. policy, bytes)
    redis.call('PEXPIREAT', outcome, expires)
  end
  redis.call('ZADD', index, expires, entry(id, policy, bytes))
  local key = claim and base(job) .. 'c:' .. string.match(claim, '"key":"(%x+)"')
  if key and queued then
    -- Nothing of the handler has run: under the same key the request may be sent again.
    redis.call('DEL', key)
    redis.call('HDEL', job, 'k')
  elseif key then
    redis.call('PEXPIREAT', key, expires)
  end
  redis.call('HSET', job, unpack(fields))
  local record = redis.call('HGETALL', job)
  redis.call('PEXPIREAT', job, expires)
  tell(command, channel, id, version, version)
  return {1, record}
end
redis.call('HSET', job, unpack(fields))
tell(command, channel, id, version, redis.call('HGET', job, 'w'))
return {1, redis.call('HGETALL', job)}
