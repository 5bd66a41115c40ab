-- Decide about one event that is due soon.

-- Return two results. The first is true if the event must stay until it is due. The second is the
-- reason for which it must become a dead letter, nil if it may start; the third is the error text
-- of that dead letter. This function reads no keys, and takes single values: a table for each event
-- would make a claim slower by an eighth.
--
-- body, score   as they are stored; `due` is the score as a number
-- expires, max_retries, mark   of the body; `max_retries` is nil if dtimer has not written it
-- token, holder, attempt       of the lease that has ended; `token` is nil if there is none
-- horizon       events that are due after this time are not claimed
local function judge(
  body, score, due, expires, max_retries, mark, token, holder, attempt, horizon)
  local reason, err
  if not body then
    reason, err = 'payload_missing', ''
  elseif not max_retries or not string.find(score, '^%d+$') or #body > MOST_BODY then
    reason, err = 'corrupt', ''
  elseif token and attempt > max_retries then
    reason, err = 'lease_lost', 'the lease of node ' .. string.sub(holder, 1, 255) .. ' ran out'
  elseif expires and expires <= NOW then
    reason, err = 'expired', ''
  end
  -- Claim ahead only events that will simply start when they are due. A lease that has ended, an
  -- expiry and an occurrence must be judged at their time. An event whose id the user chose may be
  -- replaced until then.
  local stays = due > NOW
    and (due > horizon or token or mark or reason or (expires and expires <= due))
  return stays, reason, err
end
