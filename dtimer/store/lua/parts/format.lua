-- How an event, a lease and a dead letter are stored, in the same forms as dtimer/store/format.py.
-- Scripts write and read the bytes of these values only here, and those of the state of a schedule
-- only in parts/schedule.lua.
--
-- body      '<expires>,<max_retries>[,<mark>[,<flag>...]]|<payload>'. <expires> is in µs since the
--           epoch, or empty. The mark is 'n' if the user chose the id. It is 's<nominal>,<missed>'
--           for an occurrence: its nominal time in µs, and how many missed occurrences it replaces.
--           Any other event has no mark, and an empty one if it has flags: ',3,,t…|'. The first
--           byte of the payload tells its codec; '{' begins JSON
-- flag      an optional fact about an event: one letter and its value, which has no ',' and no '|'.
--           An event without the fact has no flag. Readers skip the flags that they do not know,
--           so a new one needs no new version of the stored forms. This is the list of all flags:
--             f   when the wait began of an event posted with max_wait, in µs. A client posts this
--                 flag without a value
--             t   the trace context of the post, if it is sampled: trace id, span id and trace
--                 flags in 32, 16 and 2 hexadecimal digits
--             z   when the event was first snoozed for a reason, in µs, and that reason: '' if a
--                 handler has asked for it. The flag is removed when the event is retried
-- template  '<max_retries>|<payload>' of the occurrences of a schedule
-- lease     '<token>,<attempt>,<due>,<flags>,<incarnation>'. The flags are 'c' for cancelled, and
--           's' for an occurrence
-- letter    '<attempt>,<reason>,<length of error>|<error><body>', a dead letter
--
-- A script has those of these functions that it needs (dtimer/store/scripts.py), because creating
-- one takes half a percent of a claim. They take and return single values: a table for each event
-- would make a claim slower by an eighth.

-- Return expiry, max_retries and the first character of the mark, if there is one; nil if dtimer
-- has not written the body.
local function parse_body(body)
  local expires, max_retries, after, mark = string.match(
    body or '', '^(%d*),(%d+)([,|])([ns]?)')
  if not expires or #expires > 17 or #max_retries > 7 then return nil end
  if after == '|' or mark == '' then return tonumber(expires), tonumber(max_retries) end
  return tonumber(expires), tonumber(max_retries), mark
end

-- Return the body of an event that is posted. Its expiry may be relative: '+<µs>' from now.
local function posted_body(text)
  -- The byte 43 is the plus sign.
  if string.byte(text) ~= 43 then return text end
  local after, rest = string.match(text, '^%+(%d+)(.*)$')
  return after and digits(NOW + after) .. rest or text
end

-- Return the body of an event posted with max_wait, whose wait began at `first`.
local function with_first(body, first)
  return (string.gsub(body, '^([^|]*),f([,|])', '%1,f' .. digits(first) .. '%2', 1))
end

-- Return when the wait began to which an event belongs; nil if it was posted without max_wait.
local function first_of(body)
  local first = string.match(body or '', '^[^|]*,f(%d+)[,|]')
  return first and #first <= 17 and tonumber(first) or nil
end

-- Return the body of an occurrence that replaces no missed ones.
local function occurrence_body(expires, max_retries, nominal, payload)
  return expires .. ',' .. max_retries .. ',s' .. nominal .. ',0|' .. payload
end

-- Return the body of an occurrence with another expiry and another number of missed ones.
local function with_missed(body, expires, missed)
  return (string.gsub(
    body, '^%d*(,%d+,s%d+),%d+', expires .. '%1,' .. digits(missed), 1))
end

-- Return a body with another payload.
local function with_payload(body, payload)
  return string.match(body, '^[^|]*|') .. payload
end

-- Return the body of a dead letter that is revived: without its expiry, and without the wait of an
-- event posted with max_wait.
local function revived_body(body)
  body = string.gsub(body, '^%d*,', ',', 1)
  return (string.gsub(body, '^([^|]*),f%d+([,|])', '%1%2', 1))
end

-- Return the body of an event that is snoozed now; nil if it is to stay as it is. The event has
-- started, so the wait of an event posted with max_wait is over.
local function snoozed_body(body, reason)
  local head, start = string.match(body, '^(%d*,%d+[^|]*)()|')
  if not head or string.match(head, ',z%d+([%l_]*)') == reason then return nil end
  head = string.gsub(string.gsub(head, ',z%d+[%l_]*', ''), ',f%d+', '')
  if not string.find(head, '^%d*,%d+,') then head = head .. ',' end
  return head .. ',z' .. digits(NOW) .. reason .. string.sub(body, start)
end

-- Return a body without its first snooze; nil if it has none.
local function without_snooze(body)
  local head, start = string.match(body, '^(%d*,%d+,[^|]*)()|')
  if not head or not string.find(head, ',z%d') then return nil end
  return (string.gsub(head, ',z%d+[%l_]*', '')) .. string.sub(body, start)
end

-- Return max_retries and the payload of a template; nil if dtimer has not written it.
local function parse_template(template)
  local max_retries, start = string.match(template, '^(%d+)|()')
  if max_retries then return max_retries, string.sub(template, start) end
end

-- Return a lease. The second result is its part before the flags, which the reply to a claim
-- repeats.
local function write_lease(token, attempt, due, flags, node)
  local head = token .. ',' .. attempt .. ',' .. due .. ','
  return head .. flags .. ',' .. node, head
end

-- Return token, attempt, due time, whether it was cancelled, incarnation and flags of a lease; nil
-- if there is none or dtimer has not written it.
local function parse_lease(lease)
  local token, attempt, due, flags, node =
    string.match(lease or '', '^(%d+),(%d+),(%d+),([cs]*),(.*)$')
  if not token or #attempt > 8 or #token > 16 or #due > 17 then return nil end
  local cancelled = string.find(flags, 'c', 1, true) ~= nil
  return token, tonumber(attempt), due, cancelled, node, flags
end

-- Finds token and flags of a lease, for a caller that compares the token with a known one.
local TOKEN_AND_FLAGS = '^(%d+),%d+,%d+,(%a*),'

-- Return a dead letter.
local function write_letter(attempt, reason, err, body)
  return attempt .. ',' .. reason .. ',' .. #err .. '|' .. err .. body
end

-- The reasons of dead letters, each between two spaces. A letter may have another one if a later
-- version has written it.
local REASONS = ' failed lease_lost expired corrupt payload_missing buried unknown_kind unreadable '

-- Return the name of the total that counts the dead letters with a reason. The names are a closed
-- set, so a reason that is not known is counted as 'other'.
local function died_total(reason)
  local known = string.find(REASONS, ' ' .. reason .. ' ', 1, true)
  return 'died:' .. (known and reason or 'other')
end

-- Return the reason of a dead letter; nil if dtimer has not written the letter.
local function reason_of_letter(letter)
  return string.match(letter, '^%d+,([%w_]+),')
end

-- Return the body in a dead letter; '' if dtimer has not written the letter.
local function body_of_letter(letter)
  local length, start = string.match(letter, '^%d+,[%w_]+,(%d+)|()')
  return length and string.sub(letter, start + tonumber(length)) or ''
end
