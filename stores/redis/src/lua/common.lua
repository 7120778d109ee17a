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

local function uncount(counts, policy, bytes)
  if redis.call('HINCRBY', counts, 'j' .. policy, -1) <= 0 then
    redis.call('HDEL', counts, 'j' .. policy)
  end
  if tonumber(bytes) > 0 and redis.call('HINCRBY', counts, 'b' .. policy, -bytes) <= 0 then
    redis.call('HDEL', counts, 'b' .. policy)
  end
end

-- Counts no more what has expired, at most so many. Its keys are gone by themselves. Tells how many.
local function sweep(index, counts, most)
  local time = string.sub(now(), 1, -7)
  local due = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. time, 'LIMIT', 0, most)
  for _, name in ipairs(due) do
    local bytes, policy = string.match(name, '^(%d+):(.*)$', 33)
    uncount(counts, policy, bytes)
  end
  if #due > 0 then
    redis.call('ZREM', index, unpack(due))
  end
  return #due
end

-- Tells whoever waits for the job: its id, and the versions that it has now, if it is there.
local function tell(command, channel, id, version, status_version)
  redis.call(command, channel, id .. (version and (' ' .. version .. ' ' .. status_version) or ''))
end
