#!lua flags=allow-oom
-- What is kept in a partition, by policy. KEYS: index, counts. Gives names and numbers, and whether
-- more is to be swept.
local swept = sweep(KEYS[1], KEYS[2], 500)
return {swept, redis.call('HGETALL', KEYS[2])}
