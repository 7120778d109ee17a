-- What the scripts share. It stands before each of them.

-- The latest format of records that this release reads (tower-offload, src/job/stored.rs). One that is
-- later is left as it is, for the processes of the release that wrote it.
local FORMAT = 1
local LATER = 'a record of a later release'

local function is_later(format)
  return (tonumber(format or '0') or 0) > FORMAT
end

-- What stands before the kind of a key: the tag by which a partition's keys are of one slot.
local function base(key)
  return string.match(key, '^{[^}]*}:')
end

-- The server's time, as decimal digits: nanoseconds do not fit into the numbers of Lua.
local function now()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', time[2]) .. '000'
end

-- The server's time in milliseconds.
local function clock()
  return tonumber(string.sub(now(), 1, -7))
end

-- The time by which a partition's queues are ordered. It is the server's, plus all by which that was ever
-- set back, as the partition has seen it; a replica that takes over and whose clock is behind is the same.
-- So it never goes back, a wait is not made longer, and what comes later is due later. Where the clock is
-- set forward it goes forward as well: jobs that wait for their next attempt are due earlier by as much,
-- in their order, and the time stays ahead when the clock is set right. In microseconds, since the numbers
-- of Lua hold those of some centuries; what is kept is the server's time that was seen last, and the sum.
local function partition_time(key)
  local kept = base(key) .. 'k'
  local last, added = string.match(redis.call('GET', kept) or '', '^(%d+) (%d+)$')
  last, added = tonumber(last or '0'), tonumber(added or '0')
  local server = tonumber(string.sub(now(), 1, -4))
  local time = {seen = last, server = server, added = added + math.max(last - server, 0)}
  function time.keep()
    redis.call('SET', kept, string.format('%.0f %.0f', server, time.added))
  end
  if time.added > added then
    time.keep()
  end
  return time
end

-- When a job is due that is queued now and waits for so many milliseconds: later than all that were queued
-- before and wait as long, so that jobs are taken in their order. In milliseconds, with decimals.
local function due_after(key, delay)
  local time = partition_time(key)
  if time.server <= time.seen then
    time.added = time.added + 1
  end
  time.keep()
  return string.format('%.3f', (time.server + time.added) / 1000 + delay)
end

-- The first job of a queue but for so many, and the milliseconds until it is due; none if there is none.
-- While one waits, the time is kept each time that it is looked at, so that no step back is missed.
local function first_due(waiting, skipped)
  local first = redis.call('ZRANGE', waiting, skipped, skipped, 'WITHSCORES')
  if not first[1] then
    return nil
  end
  local time = partition_time(waiting)
  local left = tonumber(first[2]) - (time.server + time.added) / 1000
  if left > 0 then
    time.keep()
  end
  return first[1], left
end

-- The later of two times.
local function later(one, other)
  if #one ~= #other then
    return #one > #other and one or other
  end
  return one > other and one or other
end

-- Milliseconds, rounded up, of a sum of nanoseconds. One more, since doubles are not exact there.
local function milliseconds(time, more)
  return string.format('%.0f', math.ceil(tonumber(time) / 1e6 + tonumber(more) / 1e6) + 1)
end

-- How a job that has ended is named in the index of expiry.
local function entry(id, policy, bytes)
  return id .. bytes .. ':' .. policy
end

-- Takes so many from a count, which is dropped with the last.
local function less(counts, name, by)
  if tonumber(by) > 0 and redis.call('HINCRBY', counts, name, -by) <= 0 then
    redis.call('HDEL', counts, name)
  end
end

local function uncount(counts, policy, bytes)
  less(counts, 'j' .. policy, 1)
  less(counts, 'b' .. policy, bytes)
end

-- Counts no more what has expired, at most so many. Its keys are gone by themselves, by the same clock:
-- where that is set, both are early or late by as much. Tells how many.
local function sweep(index, counts, most)
  local due = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. clock(), 'LIMIT', 0, most)
  for _, name in ipairs(due) do
    local bytes, policy = string.match(name, '^(%d+):(.*)$', 33)
    -- One that is no such name is dropped all the same: it would be due for ever.
    if bytes then
      uncount(counts, policy, bytes)
    end
  end
  if #due > 0 then
    redis.call('ZREM', index, unpack(due))
  end
  return #due
end

-- How long a fence is kept, in milliseconds: a week. What it holds off are writes that its node has sent
-- and that are still on their way, and those of its process while that does not know of the fence. The
-- first go with their connection, for which TCP keeps data for minutes (RFC 9293, 3.8.3); a process that
-- was stopped for a week finds its connections closed, and all its jobs ended or in other hands, where
-- `change.lua` refuses what it has to say with or without a fence.
local FENCED = 7 * 86400 * 1000

-- Whether a node was taken for dead, in this partition: what it wants is not done any more.
local function is_fenced(fences, node)
  return redis.call('ZSCORE', fences, node) ~= false
end

-- What a change has to know of a job, if it is there.
local function load(job)
  local found =
    redis.call('HMGET', job, 's', 'v', 'b', 'c', 't', 'x', 'k', 'p', 'n', 'y', 'a', 'm', 'd', 'u', 'F')
  if not found[1] then
    return nil
  end
  if is_later(found[15]) then
    error(LATER)
  end
  local queued, running = found[1] == 'queued', found[1] == 'running'
  -- Before anything is changed: whoever called ends a job whose record cannot be read (corrupt.lua).
  for _, number in ipairs({found[2] or '', found[3] or '0', found[4] or '', found[5] or '',
    found[9] or '0', found[11] or '0', found[12] or '0'}) do
    if not string.match(number, '^%d+$') then
      error('a record that cannot be read')
    end
  end
  return {
    key = job, queued = queued, running = running, open = queued or running,
    version = tonumber(found[2]), since = found[3] or found[4], ttl = found[5],
    removed = found[6], claim = found[7], policy = found[8] or '', bytes = found[9] or '0',
    node = found[10], disclosed = found[13], fields = {},
    -- Of a durable job: how often it was begun, and may be.
    attempt = tonumber(found[11] or '0'), attempts = tonumber(found[12] or '0'),
    -- The call that began it, as long as it runs.
    take = found[14],
  }
end

-- The number of the last call by which a node has undone an insert that was not there yet. An insert can
-- be held up on its way for longer than any time that could be chosen here, so the number is kept for as
-- long as the node is not fenced: all inserts of the node with a lower number are refused in this
-- partition. An insert that nobody has undone, and that the undoing call has overtaken, is refused as
-- well, and its client is answered 503.
local function undone_until(job, node)
  return base(job) .. 'x:' .. node
end

-- Refuses the inserts before this call that come under these names: those that the process has had.
local function forbid(job, number, nodes)
  for _, node in ipairs(nodes) do
    local key = undone_until(job, node)
    -- The fence refuses the inserts of a fenced node, for which nobody would drop the number.
    local is_needed = not is_fenced(base(job) .. 'f', node)
    if is_needed and tonumber(number) > tonumber(redis.call('GET', key) or -1) then
      redis.call('SET', key, number)
    end
  end
end

local function is_forbidden(job, node, number)
  return tonumber(number) < tonumber(redis.call('GET', undone_until(job, node)) or -1)
end

-- The job that has a claim, if there is one, for another request: {id, record}. The job can't be taken
-- back from then on. That is written each time: the request may wait for replicas, and `WAIT` waits for
-- what its own connection has written (valkey, src/server.c, `call`).
local function holder_of(claim, jobs)
  local holder = redis.call('GET', claim)
  local record = holder and redis.pcall('HGETALL', jobs .. holder) or {}
  if record.err then
    -- It is no hash. Whoever called ends the job.
    return {holder, false}
  elseif #record > 0 then
    redis.call('HSET', jobs .. holder, 'd', 1)
    return {holder, record}
  end
end

-- Gives what is to be told instead where a new job is not kept: {'known'} if its id is, or was undone, or
-- {id, record} of the job with its claim.
local function admit(job, id, claim, node, number)
  if redis.call('EXISTS', job) == 1 or is_forbidden(job, node, number) then
    return {'known'}
  end
  local held = claim and holder_of(claim, base(job) .. 'j:')
  if held then
    return held
  end
end

-- Gives a new job its claim, if it has one.
local function keep_claim(claim, id)
  if claim then
    redis.call('SET', claim, id)
  end
end

local function set(job, name, value)
  job.fields[#job.fields + 1] = name
  job.fields[#job.fields + 1] = value
end

-- Counts a change. A version is at most what 32 bits hold.
local function count(job, is_progress)
  job.version = math.min(job.version + 1, 4294967295)
  set(job, 'v', job.version)
  if not is_progress then
    set(job, 'w', job.version)
  end
end

-- The time of a change. The clock can be set back; what was promised must not move earlier with it.
local function time(job)
  return later(now(), job.since)
end

-- The ids of those that run on a node.
local function runs(job, node)
  return base(job) .. 'r:' .. node
end

-- The nodes that run jobs of this partition, or did so and were not taken for dead since. The partition
-- knows them itself: the list of leases is on another server, which may lose it, and what this one loses
-- brings back the jobs of a node and its name here together.
local function nodes(key)
  return base(key) .. 'w'
end

-- Lists a job with those that run on a node.
local function list(job, id, node)
  redis.call('SADD', runs(job, node), id)
  redis.call('SADD', nodes(job), node)
end

-- Tells whoever waits for a job: its id, and the versions that it has now, if it is there.
local function tell(how, id, version, status_version)
  redis.call(how.command, how.channel, id .. (version and (' ' .. version .. ' ' .. status_version) or ''))
end

-- Of durable jobs: the ids of those that wait, by when they are due; a job's request; and those that
-- were given up, by when they expire.
local function queue(job, policy)
  return base(job) .. 'q:' .. policy
end

local function request(job, id)
  return base(job) .. 'b:' .. id
end

local function given_up(job)
  return base(job) .. 'd'
end

-- Where the record of a job is kept that could not be read: see corrupt.lua.
local function unreadable(job, id)
  return base(job) .. 'u:' .. id
end

-- Which job a call of take.lua has begun: see there.
local function taken_by(job, call)
  return base(job) .. 't:' .. call
end

-- The job is no longer run under the call that began it.
local function forget_take(job)
  if job.take then
    redis.call('DEL', taken_by(job.key, job.take))
    redis.call('HDEL', job.key, 'u')
  end
end

-- Tells whoever takes durable jobs that there is one of this policy. The partition is in the tag.
local function tell_arrival(how, job, policy)
  redis.call(how.command, how.channel, '+' .. string.match(job, ':(%d+)}') .. ' ' .. policy)
end

-- Ends an open job with the fields that were set, lets it expire, and gives its record.
local function finish(job, id, index, how)
  local at = time(job)
  local expires = milliseconds(at, job.ttl)
  set(job, 'e', at)
  count(job)
  redis.call('ZADD', index, expires, entry(id, job.policy, job.bytes))
  if job.node then
    redis.call('SREM', runs(job.key, job.node), id)
  end
  forget_take(job)
  if job.attempts > 0 then
    redis.call('ZREM', queue(job.key, job.policy), id)
    if job.is_given_up then
      redis.call('PEXPIREAT', request(job.key, id), expires)
      redis.call('ZREMRANGEBYSCORE', given_up(job.key), '-inf', '(' .. clock())
      redis.call('ZADD', given_up(job.key), expires, id)
    else
      redis.call('DEL', request(job.key, id))
    end
  end
  local claim = job.claim and base(job.key) .. 'c:' .. job.claim
  if claim and job.queued and job.attempt == 0 then
    -- Nothing of the handler has run: under the same key the request may be sent again.
    redis.call('DEL', claim)
    redis.call('HDEL', job.key, 'k', 'q')
  elseif claim then
    redis.call('PEXPIREAT', claim, expires)
  end
  redis.call('HSET', job.key, unpack(job.fields))
  local record = redis.call('HGETALL', job.key)
  redis.call('PEXPIREAT', job.key, expires)
  tell(how, id, job.version, job.version)
  return record, expires
end

-- What becomes of a job whose process failed it: a durable one is queued again while it has attempts
-- left, after so many milliseconds; any other has failed for this reason. Gives its record.
local function lose(job, id, index, how, reason, delay)
  if not job.running or job.attempt >= job.attempts then
    job.is_given_up = job.attempts > 0 and job.attempt > 0
    set(job, 's', 'failed')
    set(job, 'f', reason)
    return (finish(job, id, index, how))
  end
  set(job, 's', 'queued')
  count(job)
  redis.call('SREM', runs(job.key, job.node), id)
  forget_take(job)
  redis.call('HDEL', job.key, 'b', 'y')
  redis.call('HSET', job.key, unpack(job.fields))
  redis.call('ZADD', queue(job.key, job.policy), due_after(job.key, delay), id)
  tell(how, id, job.version, job.version)
  if delay == 0 then
    tell_arrival(how, job.key, job.policy)
  end
  return redis.call('HGETALL', job.key)
end

-- How long a job waits whose process was lost in this attempt: a second, then twice as long each time,
-- at most five minutes, so that one which takes its process with it does not do so again at once.
local function backoff(attempt)
  return math.min(1000 * 2 ^ (attempt - 1), 300000)
end
