#!lua flags=allow-oom
-- Ends a job whose record cannot be read. The record, whatever it is, is kept beside the dead letters
-- until they expire, and in its place is one of a failed job with what could be read of it.
-- KEYS: job, outcome, index, counts.
-- ARGV: the job's id, the command and channel to tell of it, a node that may list it, how many fields and
-- values were read of its record (-1: it is no hash), these, then the fields and values of the new one.
-- Gives whether it was ended: not if the record has changed since it was read.
local key, outcome, index, counts = unpack(KEYS)
local id, how, node = ARGV[1], {command = ARGV[2], channel = ARGV[3]}, ARGV[4]
local many = tonumber(ARGV[5])

-- The pairs of a list, from one place to another.
local function pairs_of(list, from, to)
  local found = {}
  for at = from, to, 2 do
    found[list[at]] = list[at + 1]
  end
  return found
end

local function is_as_it_was_read(before)
  if redis.call('TYPE', key).ok ~= 'hash' then
    return many < 0 and redis.call('EXISTS', key) == 1
  end
  local now_there = redis.call('HGETALL', key)
  if #now_there ~= many then
    return false
  end
  for name, value in pairs(pairs_of(now_there, 1, many)) do
    if before[name] ~= value then
      return false
    end
  end
  return true
end

-- Out of the queue that it waits in: its policy, if there is one. Each is counted by its name.
local function leave_queue()
  for _, name in ipairs(redis.call('HKEYS', counts)) do
    local policy = string.match(name, '^j(.*)$')
    if policy and redis.call('ZREM', queue(key, policy), id) == 1 then
      return policy
    end
  end
end

-- Out of the index of expiry, if it had ended: its policy, and the bytes that it counts with. It is looked
-- for by its id alone, since what it is listed under may be what cannot be read.
local function leave_index()
  local from, names = 0
  repeat
    names = redis.call('ZRANGE', index, from, from + 999)
    for _, name in ipairs(names) do
      if string.sub(name, 1, 32) == id then
        redis.call('ZREM', index, name)
        local bytes, policy = string.match(name, '^(%d+):(.*)$', 33)
        return policy, bytes
      end
    end
    from = from + #names
  until #names == 0
end

local before = pairs_of(ARGV, 6, 5 + math.max(many, 0))
if not is_as_it_was_read(before) then
  return 0
end
local first = 6 + math.max(many, 0)
local fields = pairs_of(ARGV, first, #ARGV)

local waited = leave_queue()
local policy, bytes = leave_index()
policy = policy or waited or before['p'] or ''
less(counts, 'b' .. policy, bytes or '0')
redis.call('SREM', runs(key, node), id)
if before['y'] then
  redis.call('SREM', runs(key, before['y']), id)
end
if before['u'] then
  redis.call('DEL', taken_by(key, before['u']))
end

local unread = unreadable(key, id)
redis.call('RENAME', key, unread)
if redis.call('EXISTS', outcome) == 1 then
  redis.call('RENAME', outcome, unread .. ':o')
end
redis.call('HSET', key, unpack(ARGV, first))
if not fields['c'] then
  redis.call('HSET', key, 'c', now())
end
if waited and not fields['p'] and not string.find(waited, '[\128-\255]') then
  redis.call('HSET', key, 'p', waited)
end
local ended = later(now(), fields['b'] or fields['c'] or '')
redis.call('HSET', key, 'e', ended)
local expires = milliseconds(ended, fields['t'])
redis.call('ZADD', index, expires, entry(id, policy, '0'))
redis.call('ZADD', given_up(key), expires, id)
for _, kept in ipairs({key, unread, unread .. ':o', request(key, id)}) do
  redis.call('PEXPIREAT', kept, expires)
end
local claim = fields['k'] and base(key) .. 'c:' .. fields['k']
if claim and redis.call('GET', claim) == id then
  redis.call('PEXPIREAT', claim, expires)
end
tell(how, id, fields['v'], fields['w'])
return 1
