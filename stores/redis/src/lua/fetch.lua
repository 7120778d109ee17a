#!lua flags=no-writes
-- A job's record, and its outcome, if that is wanted: nothing, the whole of it, or its first chunk and the
-- bytes of all.
-- KEYS: job, and outcome if it is wanted. ARGV: the owner, if one asks.
-- Gives {} if there is no such job, or it is another owner's: both by the same command, so that not even
-- the time that it takes tells which.
local job, outcome = unpack(KEYS)
local owner = ARGV[1]
if owner and redis.call('HGET', job, 'o') ~= owner then
  return {}
end
local record = redis.call('HGETALL', job)
local kind = outcome and redis.call('TYPE', outcome).ok
if kind == 'string' then
  return {record, redis.call('GET', outcome)}
elseif kind == 'list' then
  return {record, redis.call('LINDEX', outcome, 0), redis.call('HGET', job, 'n')}
end
return {record}
