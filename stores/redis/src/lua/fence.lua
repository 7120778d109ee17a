#!lua flags=allow-oom
-- Takes a node for dead whose lease is over: from now on it cannot renew it.
-- KEYS: leases, fenced nodes. ARGV: the node, and the milliseconds that a lease lasts.
-- Gives whether it is taken for dead. Its lease is left, so that others go on if whoever ends its jobs
-- does not come to the end of them.
local renewed = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not renewed then
  return 0
end
local time = clock()
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return 1
end
if tonumber(renewed) >= time - ARGV[2] then
  return 0
end
redis.call('ZADD', KEYS[2], time, ARGV[1])
return 1
