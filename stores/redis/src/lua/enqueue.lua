#!lua
-- Keeps a durable job, its request and its claim, or gives the job that has the claim.
-- KEYS: job, index, counts, fences, and the claim if there is one.
-- ARGV: the job's id, the command and channel to tell of it, its policy, its request, the node that keeps
-- it and the number of its call, then the record's fields and values.
-- Gives {} if it is kept, {'known'} if its id is, {'fenced'} if its node is, or {id, record} of the job
-- with the claim.
local job, index, counts, fences, claim = unpack(KEYS)
local id, how, policy = ARGV[1], {command = ARGV[2], channel = ARGV[3]}, ARGV[4]
if is_fenced(fences, ARGV[6]) then
  return {'fenced'}
end
sweep(index, counts, 8)
local refused = admit(job, id, claim, ARGV[6], ARGV[7])
if refused then
  return refused
end
-- First: they fail where these are damaged, and what a script that fails has done stays done.
redis.call('ZADD', queue(job, policy), due_after(job, 0), id)
redis.call('HINCRBY', counts, 'j' .. policy, 1)
keep_claim(claim, id)
redis.call('HSET', job, unpack(ARGV, 8))
redis.call('SET', request(job, id), ARGV[5])
tell_arrival(how, job, policy)
return {}
