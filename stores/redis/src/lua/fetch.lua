#!lua flags=no-writes
-- A job's record, and its outcome: nothing, the whole of it, or its first chunk and the bytes of all.
-- KEYS: job, outcome.
local record = redis.call('HGETALL', KEYS[1])
local kind = redis.call('TYPE', KEYS[2]).ok
if kind == 'string' then
  return {record, redis.call('GET', KEYS[2])}
elseif kind == 'list' then
  return {record, redis.call('LINDEX', KEYS[2], 0), redis.call('HGET', KEYS[1], 'n')}
end
return {record}
