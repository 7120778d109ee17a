#!lua
-- Keeps a new job and its claim, or gives the job that has the claim.
-- KEYS: job, index, counts, and the claim if there is one.
-- ARGV: the job's id, the name of its policy, then the record's fields and values.
-- Gives {} if it is kept, {'known'} if its id is, or {id, record} of the job with the claim.
local job, index, counts, claim = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
sweep(index, counts, 8)
if redis.call('EXISTS', job) == 1 then
  return {'known'}
end
if claim then
  local holder = redis.call('GET', claim)
  local record = holder and redis.call('HGETALL', base(job) .. 'j:' .. holder) or {}
  if #record > 0 then
    return {holder, record}
  end
  redis.call('SET', claim, ARGV[1])
end
redis.call('HSET', job, unpack(ARGV, 3))
redis.call('HINCRBY', counts, 'j' .. ARGV[2], 1)
return {}
