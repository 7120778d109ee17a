-- What the scripts share. It stands before each of them.

-- What stands before the kind of a key: the tag by which a partition's keys are of one slot.
-- A job's key ends with 'j:' and 32 digits.
local function base(job)
  return string.sub(job, 1, -35)
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

-- Counts no more what has expired, at most so many. Its keys are gone by themselves. Tells how many.
local function sweep(index, counts, most)
  local due = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. clock(), 'LIMIT', 0, most)
  for _, name in ipairs(due) do
    local bytes, policy = string.match(name, '^(%d+):(.*)$', 33)
    uncount(counts, policy, bytes)
  end
  if #due > 0 then
    redis.call('ZREM', index, unpack(due))
  end
  return #due
end

-- Whether a node was taken for dead, in this partition: what it wants is not done any more.
local function is_fenced(fences, node)
  return redis.call('ZSCORE', fences, node) ~= false
end

-- What a change has to know of a job, if it is there.
local function load(job)
  local found = redis.call('HMGET', job, 's', 'v', 'b', 'c', 't', 'x', 'k', 'p', 'n', 'y', 'a', 'm', 'd')
  if not found[1] then
    return nil
  end
  local queued, running = found[1] == 'queued', found[1] == 'running'
  return {
    key = job, queued = queued, running = running, open = queued or running,
    version = tonumber(found[2]), since = found[3] or found[4], ttl = found[5],
    removed = found[6], claim = found[7], policy = found[8] or '', bytes = found[9] or '0',
    node = found[10], disclosed = found[13], fields = {},
    -- Of a durable job: how often it was begun, and may be.
    attempt = tonumber(found[11] or '0'), attempts = tonumber(found[12] or '0'),
  }
end

-- Where it is noted, for an hour, that a job is not to be: an insert that was held up on its way, and
-- whose error was told long ago, may come after what undoes it. Calls of a node are numbered.
local function note(job)
  return base(job) .. 'x:' .. string.sub(job, -32)
end

local function forbid(job, node, number)
  redis.call('SET', note(job), node .. ' ' .. number, 'PX', 3600000)
end

local function is_forbidden(job, node, number)
  local by, since = string.match(redis.call('GET', note(job)) or '', '^(%S+) (%d+)$')
  return by == node and tonumber(number) < tonumber(since)
end

-- The job that has a claim, if there is one, for another request: {id, record}. The job can't be taken
-- back from then on. That is written each time: the request may wait for replicas, and `WAIT` waits for
-- what its own connection has written (valkey, src/server.c, `call`).
local function holder_of(claim, jobs)
  local holder = redis.call('GET', claim)
  local record = holder and redis.call('HGETALL', jobs .. holder) or {}
  if #record > 0 then
    redis.call('HSET', jobs .. holder, 'd', 1)
    return {holder, record}
  end
end

-- Gives a new job its claim, if it has one; or gives what is to be told instead: {'known'} if its id is, or
-- was undone, or {id, record} of the job with the claim.
local function admit(job, id, claim, node, number)
  if redis.call('EXISTS', job) == 1 or is_forbidden(job, node, number) then
    return {'known'}
  end
  local held = claim and holder_of(claim, base(job) .. 'j:')
  if held then
    return held
  end
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
  redis.call('HDEL', job.key, 'b', 'y')
  redis.call('HSET', job.key, unpack(job.fields))
  redis.call('ZADD', queue(job.key, job.policy), clock() + delay, id)
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
