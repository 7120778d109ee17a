#!lua flags=no-writes
-- The versions of a job, and the milliseconds until it expires. KEYS: job.
local found = redis.call('HMGET', KEYS[1], 'v', 'w')
return {found[1], found[2], redis.call('PTTL', KEYS[1])}
